"""What the stored values of a monochrome DICOM frame look like: the grayscale pipeline of PS3.4 N.2, in its order.

    stored values ─► padding mask ─► modality LUT ─► VOI LUT or window ─► inversion ─► padding to black
                                                 └─► numbers, for preprocessing: percentiles, inversion, black
                                                      values of a supplemental palette ─► their luminance, last

Each transform is looked for in the frame's functional groups, then in the shared ones, then in the data set itself:
pydicom's functions look in the data set alone and silently leave enhanced objects in stored values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from deepmcat_core import sop_classes
from deepmcat_core.dicom_values import functional_group, in_sign, item, number, text
from deepmcat_core.frame import FloatPlane, Frame, Intensity, Mask
from deepmcat_core.intensity import deep_frame, extent, scale, working_type
from deepmcat_core.levels import by_level
from deepmcat_core.lookup_table import has_supplemental_palette, read_lookup_table, read_supplemental_palette

Values = npt.NDArray[Any]
Show = Callable[[Values], FloatPlane]  # grey of values, each by itself

# The value that is padding, or the first of such values, and the last, by the type of what is stored.
_WHOLE_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_PADDING = {
    "f4": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "f8": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}


def monochrome(stored: Values, dataset: Dataset, frame: int, intensity: Intensity, *, little_endian: bool) -> Frame:
    """(H, W) stored values of a frame as grey, or as the numbers to stretch. May raise what pydicom raises.

    Grey is what goes through a window, for which the image decides what is black and white, and what is stored in one
    bit: it has no noise, and percentiles of a mask's edges at a smaller size are no range.
    """
    unknown = padding(stored, dataset)
    palette = read_supplemental_palette(dataset, signed=stored.dtype.kind == "i", little_endian=little_endian)
    painted = None
    if palette is not None:
        coloured = stored >= palette.first
        unknown = coloured if unknown is None else unknown | coloured
        painted = np.where(coloured, palette.apply(stored), np.float32(0))
    inverted = is_inverted(dataset)
    show = _shown(stored, dataset, frame, intensity, little_endian=little_endian)
    slope, intercept = rescaling(dataset, frame)
    holds = holds_rescaling(stored, slope, intercept, unknown)
    if show is None:
        # Grey is a line over these numbers, so a line over stored values is left out where it would cost them.
        values = (
            modality_values(stored, dataset, frame, little_endian=little_endian)
            if holds
            else stored * working_type(stored.dtype)(math.copysign(1, slope))
        )
        wide = stored.dtype.itemsize > 2
        return deep_frame(values, intensity, unknown, inverted=inverted, wide=wide, painted=painted)

    def grey_of(levels: Values) -> FloatPlane:
        exact = levels if holds else levels.astype(np.float64)
        values = modality_values(exact, dataset, frame, little_endian=little_endian)
        grey = 1 - show(values) if inverted else show(values)
        return np.where(np.isfinite(levels), grey, np.float32(0))

    grey = by_level(stored, grey_of)
    if unknown is not None:
        grey[unknown] = 0
    return Frame(pixels=grey if painted is None else grey + painted)


def is_linear(dataset: Dataset, frame: int, intensity: Intensity) -> bool:
    """Whether the mean of some pixels looks like the pixels from afar: between its ends, grey is a line over them.

    It is not where some are padding, where they are looked up, and within a window, which may be narrow.
    """
    source = _modality(dataset, frame)
    return (
        intensity.mode == "percentile"
        and "PixelPaddingValue" not in dataset
        and item(source, "ModalityLUTSequence") is None
        and not has_supplemental_palette(dataset)
    )


def padding(stored: Values, dataset: Dataset) -> Mask | None:
    """(H, W), which stored values are padding (PS3.3 C.7.5.1.1.2); None where no value is declared as such."""
    value, limit = (number(dataset, keyword) for keyword in _PADDING.get(stored.dtype.str[1:], _WHOLE_PADDING))
    if value is None:
        return None
    ends = [value, value if limit is None else limit]
    if stored.dtype.kind != "f":
        signed = (in_sign(end, signed=stored.dtype.kind == "i", bits=8 * stored.dtype.itemsize) for end in ends)
        ends = [int(end) if end.is_integer() else end for end in signed]  # else all pixels would be made floats first
    first, last = min(ends), max(ends)
    mask: Mask = stored == first if first == last else (stored >= first) & (stored <= last)
    return mask


def modality_values(stored: Values, dataset: Dataset, frame: int, *, little_endian: bool) -> Values:
    """(H, W) stored values in the units of the modality, such as Hounsfield units (PS3.3 C.11.1).

    A slope of 0 or one that is no number occurs in real files by mistake, and is ignored: it would erase the picture.
    """
    source = _modality(dataset, frame)
    if (table := item(source, "ModalityLUTSequence")) is not None:
        lookup = read_lookup_table(table, signed=stored.dtype.kind != "u", little_endian=little_endian)
        return by_level(stored, lookup.apply)
    values = stored.astype(working_type(stored.dtype))
    slope, intercept = rescaling(dataset, frame)
    if slope != 1:
        values *= slope
    if intercept:
        values += intercept
    return values


def rescaling(dataset: Dataset, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame; 1 and 0 where they are not said or, for a slope, of no use."""
    source = _modality(dataset, frame)
    if item(source, "ModalityLUTSequence") is not None:
        return 1.0, 0.0
    return number(source, "RescaleSlope") or 1.0, number(source, "RescaleIntercept") or 0.0


LEVELS = 4096
"""Grey levels that have to be told apart where numbers have no finest step of their own."""


def holds_rescaling(stored: Values, slope: float, intercept: float, unknown: Mask | None) -> bool:
    """Whether (H, W) stored values can be told apart when they are rescaled, in the type that they are rescaled in.

    They cannot where a slope makes them infinite or next to nothing, nor where an intercept has more digits than are
    left for them. unknown: (H, W), which of them do not matter.
    """
    if slope == 1 and intercept == 0:
        return True
    if stored.dtype.kind != "f":
        greatest, finest = 2.0 ** (8 * stored.dtype.itemsize), 1.0
    else:
        seen = stored[np.isfinite(stored) if unknown is None else np.isfinite(stored) & ~unknown]
        greatest = float(np.abs(seen).max(initial=0))
        finest = float(np.ptp(seen / 2)) * 2 / LEVELS if seen.size else 0.0
    numbers = np.finfo(working_type(stored.dtype))
    return (
        greatest * abs(slope) + abs(intercept) < float(numbers.max)
        and finest * abs(slope) > float(numbers.tiny)
        and finest * abs(slope) >= 8 * float(numbers.eps) * abs(intercept)
    )


def may_be_negative(stored: np.dtype[Any], dataset: Dataset, frame: int) -> bool:
    """Whether stored values of a type may become negative in the units of the modality, as Hounsfield units are."""
    if item(_modality(dataset, frame), "ModalityLUTSequence") is not None:
        return False
    if stored.kind == "f":
        return True
    slope, intercept = rescaling(dataset, frame)
    ends = np.iinfo(stored)
    return min(ends.min * slope, ends.max * slope) + intercept < 0


def is_inverted(dataset: Dataset) -> bool:
    """Whether the lowest value is white.

    MONOCHROME1 and a Presentation LUT Shape of INVERSE say the same thing, once or twice (PS3.3 C.8.11.3), so both
    together do not cancel.
    """
    return (
        text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
        or text(dataset, "PresentationLUTShape") == "INVERSE"
    )


def window(centre: float, width: float, function: str) -> Show | None:
    """What a window (PS3.3 C.11.2.1.2, C.11.2.1.3) makes of values; None where the width is not allowed."""
    if width < (0 if function in ("SIGMOID", "LINEAR_EXACT") else 1) or width == 0:
        return None
    if function == "SIGMOID":
        return lambda values: (1 / (1 + np.exp(-4 * (values - centre) / width))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return lambda values: _ramp(values, centre - width / 2, centre + width / 2)
    # The halves are in the standard: a window of width 1 is a threshold, and of width 256 the identity on bytes.
    return lambda values: _ramp(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _shown(stored: Values, dataset: Dataset, frame: int, intensity: Intensity, *, little_endian: bool) -> Show | None:
    """What makes grey of a frame's values, each by itself; None where that takes all of them."""
    if intensity.mode == "window":
        signed = may_be_negative(stored.dtype, dataset, frame)
        if (show := _voi(dataset, frame, signed=signed, little_endian=little_endian)) is not None:
            return show
    if number(dataset, "BitsAllocated") == 1:
        both = modality_values(np.arange(2, dtype=stored.dtype), dataset, frame, little_endian=little_endian)
        if (ends := extent(both, (0, 100))) is not None:
            return lambda values: scale(values, *ends)
    return None


def _voi(dataset: Dataset, frame: int, *, signed: bool, little_endian: bool) -> Show | None:
    """The image's own VOI LUT or first window; None where it has none that is usable. signed: values may be."""
    source = functional_group(dataset, frame, "FrameVOILUTSequence") or dataset
    if (table := item(source, "VOILUTSequence")) is not None:
        lookup = read_lookup_table(table, signed=signed, little_endian=little_endian)
        return lambda values: scale(lookup.apply(values), 0, lookup.top)
    centre, width = number(source, "WindowCenter"), number(source, "WindowWidth")
    if centre is None or width is None:
        return None
    return window(centre, width, text(source, "VOILUTFunction"))


def _modality(dataset: Dataset, frame: int) -> Dataset:
    """What holds the modality LUT or rescaling of a frame; an empty data set where none is for showing.

    In angiography with a logarithmic or display relationship it leads back from what is stored, which is what is
    shown, to the intensity of the beam (PS3.3 C.8.7.1.1.2).
    """
    if text(dataset, "PixelIntensityRelationship") in ("LOG", "DISP") and sop_classes.is_angiography(
        text(dataset, "SOPClassUID")
    ):
        return Dataset()
    return functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset


def _ramp(values: Values, low: float, high: float) -> FloatPlane:
    if low == high:
        return (values > low).astype(np.float32)
    return scale(values, low, high)
