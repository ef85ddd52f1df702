"""Values of DICOM elements, read with the forgiveness that real files need: what cannot be read counts as absent.

Call it within `translated`, which keeps quiet what pydicom has to say about them.
"""

from __future__ import annotations

import math
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from deepmcat_core.dicom_dataset import SparseDataset


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """The finite numbers of an element; () where it is absent, empty, or anything else."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        return ()
    try:
        found = tuple(float(v) for v in (value if isinstance(value, MultiValue | list | tuple) else [value]))
    except (TypeError, ValueError, OverflowError):
        return ()
    return found if all(math.isfinite(v) for v in found) else ()


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
    """The values of an element as text, stripped; () where there are none."""
    value = _value(dataset, keyword)
    if value is None:
        return ()
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return tuple(str(v).strip(" \0") for v in values)


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an element as text, or ""."""
    return next(iter(texts(dataset, keyword)), "")


def item(dataset: Dataset, keyword: str, number: int = 0) -> Dataset | None:
    """An item of a sequence; None where it has none of that number, is absent or no sequence."""
    return dataset.item(keyword, number) if isinstance(dataset, SparseDataset) else None


def functional_group(dataset: Dataset, frame: int, macro: str) -> Dataset | None:
    """The item of a functional group macro that holds for a frame: its own, else the shared one (PS3.3 C.7.6.16).

    None where the object has no such group, as in every object that is not enhanced.
    """
    for groups, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        group = item(dataset, groups, number)
        if group is not None and (found := item(group, macro)) is not None:
            return found
    return None


def _value(dataset: Dataset, keyword: str) -> Any:
    """What pydicom makes of an element; None where it is absent, or nothing can be made of it."""
    try:
        return dataset[keyword].value if keyword in dataset else None  # most are absent
    except Exception:  # noqa: BLE001 - pydicom raises whatever the moment suggests
        return None
