"""Values of DICOM elements, read with the forgiveness that real files need: what cannot be read counts as absent."""

from __future__ import annotations

import math
from contextlib import suppress

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from deepmcat_core.errors import ImageError
from deepmcat_core.translation import translated

MAX_BYTES = 4096  # of an element that has a few values; pydicom would convert a million of them, one by one


def numbers(dataset: Dataset, keyword: str, *, max_bytes: int = MAX_BYTES) -> tuple[float, ...]:
    """The finite numbers of an element; () where it is absent, empty, longer than `max_bytes`, or anything else."""
    if keyword not in dataset or _is_longer(dataset, keyword, max_bytes):  # absent, as most are
        return ()
    with suppress(ImageError), translated():
        value = dataset.get(keyword)
        if value is None or value == "":
            return ()
        found = tuple(float(v) for v in (value if isinstance(value, MultiValue | list | tuple) else [value]))
        return found if all(math.isfinite(v) for v in found) else ()
    return ()


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first number of an element, or None."""
    return next(iter(numbers(dataset, keyword)), None)


def in_sign(value: float, *, signed: bool, bits: int = 16) -> float:
    """A whole number of so many bits in the sign it was meant in: writers get the VR wrong, and -2000 becomes 63536."""
    if signed and value >= 2.0 ** (bits - 1):
        return value - 2.0**bits
    if not signed and value < 0:
        return value + 2.0**bits
    return value


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an element as text, stripped; () where there are none, or more than MAX_BYTES of them."""
    if keyword not in dataset or _is_longer(dataset, keyword, MAX_BYTES):
        return ()
    with suppress(ImageError), translated():
        value = dataset.get(keyword)
        if value is None:
            return ()
        values = value if isinstance(value, MultiValue | list | tuple) else [value]
        return tuple(str(v).strip(" \0") for v in values)
    return ()


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an element as text, or ""."""
    return next(iter(texts(dataset, keyword)), "")


def item(dataset: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence; None where it is absent, empty or not a sequence."""
    if keyword not in dataset:
        return None
    with suppress(ImageError), translated():
        sequence = dataset.get(keyword)
        first = sequence[0] if sequence else None
        return first if isinstance(first, Dataset) else None
    return None


def functional_group(dataset: Dataset, frame: int, macro: str) -> Dataset | None:
    """The item of a functional group macro that holds for a frame: its own, else the shared one (PS3.3 C.7.6.16).

    None where the object has no such group, as in every object that is not enhanced.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    own = per_frame[frame] if per_frame is not None and frame < len(per_frame) else None
    shared = item(dataset, "SharedFunctionalGroupsSequence")
    for group in (own, shared):
        if group is not None and (found := item(group, macro)) is not None:
            return found
    return None


def _is_longer(dataset: Dataset, keyword: str, max_bytes: int) -> bool:
    """Whether the value of an element that is there has more bytes, as it was read and before it is converted."""
    raw: object = dataset.get_item(keyword)  # an element, says its annotation, and often a raw one
    return isinstance(raw, RawDataElement) and raw.value is not None and len(raw.value) > max_bytes
