"""From numbers to grey: the stretch between percentiles, and the luminance of colours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.frame import FloatPlane, Frame, Intensity, Mask

# Rec. ITU-R BT.601: what YBR_FULL's Y is (PS3.3 C.7.6.3.1.2), and what Pillow uses.
REC_601 = (0.299, 0.587, 0.114)

# How far numbers of 32 bits and more may lie beyond the range that becomes grey, in such ranges. What is farther, such
# as a fit that has come to nothing in a parametric map, would outshine its neighbours in a mean.
OUTLIERS = 8.0

# How far numbers may be apart that ought to be the same, in steps of their precision: as stored, and resampled.
_STEPS_STORED, _STEPS_RESAMPLED = 2, 8


def deep_frame(
    values: npt.NDArray[Any],
    intensity: Intensity,
    unknown: Mask | None = None,
    *,
    inverted: bool = False,
    wide: bool = False,
    painted: FloatPlane | None = None,
) -> Frame:
    """The frame of (H, W) numbers that are to be stretched once they are at the size that is wanted.

    unknown: (H, W), numbers that say nothing, such as padding; those that are not finite say nothing either. wide: they
    are stored in 32 bits or more. inverted, painted: see `Frame`.
    """
    if (not_numbers := unusable(values)) is not None:
        unknown = not_numbers if unknown is None else unknown | not_numbers
    if unknown is not None and not unknown.any():
        unknown = None
    known = None if unknown is None else ~unknown
    if wide:
        pixels = _narrowed(values, known, intensity, inverted=inverted)
    else:
        # Bytes stay so while they can: there are but 256 of them to find percentiles of.
        kept = values.dtype if values.dtype == np.uint8 and unknown is None else np.dtype(np.float32)
        pixels = values.astype(kept, copy=unknown is not None)
    if unknown is not None:
        np.copyto(pixels, 0, where=unknown)
    return Frame(pixels=pixels, deep=True, inverted=inverted, known=known, painted=painted)


def stretch(
    values: npt.NDArray[Any], seen: npt.NDArray[Any], intensity: Intensity, *, inverted: bool = False
) -> FloatPlane:
    """(H, W) numbers as grey: the low percentile becomes 0, the high one 1, values beyond them are clipped.

    seen: (N,) the numbers of which the percentiles are. inverted: the lowest value is white; the percentiles are then
    counted from the other end, so that a picture stored either way looks the same. A constant image is black.
    """
    ends = extent(seen, percents(intensity, inverted=inverted))
    if ends is None:
        return np.zeros(values.shape, dtype=np.float32)
    grey = scale(values, *ends)
    return 1 - grey if inverted else grey


def percents(intensity: Intensity, *, inverted: bool) -> tuple[float, float]:
    """Which percentiles of stored values become the ends of grey, the lower first."""
    return (100 - intensity.high, 100 - intensity.low) if inverted else (intensity.low, intensity.high)


def extent(
    numbers: npt.NDArray[Any], percents: tuple[float, float], steps: int = _STEPS_RESAMPLED
) -> tuple[float, float] | None:
    """The two percentiles of (N,) numbers, or where they coincide (a mask with few pixels set) minimum and maximum.

    steps: of the precision of numbers, which may lie between those that coincide.
    None where those coincide too, and where there are no numbers.
    """
    if not numbers.size:
        return None
    rounding = steps * precision(numbers.dtype)
    low, high = percentiles(numbers, percents)
    if _coincide(low, high, rounding):
        low, high = float(numbers.min()), float(numbers.max())
    return None if _coincide(low, high, rounding) else (low, high)


def percentiles(numbers: npt.NDArray[Any], percents: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of (N,) numbers, the lower first: between neighbours in order, on a straight line.

    They are those of `np.percentile` to the bit, which takes much longer to ask for them than to find them.
    """
    last = numbers.size - 1
    places = [last * (percent / 100) for percent in percents]
    before = [math.floor(place) for place in places]
    after = [min(rank + 1, last) for rank in before]
    halves = _halves_in_order(numbers, [*before, *after])
    low, high = (
        2 * _between(halves[i], halves[i + len(places)], place - rank)
        for i, (place, rank) in enumerate(zip(places, before, strict=True))
    )
    return low, high


def scale(values: npt.NDArray[Any], low: float, high: float, beyond: float = 0) -> FloatPlane:
    """(H, W) numbers as grey: `low` becomes 0, `high` 1, values more than `beyond` outside are clipped. low < high."""
    grey = values.astype(working_type(values.dtype))
    grey *= 0.5  # see `extent`
    grey -= low / 2
    grey /= high / 2 - low / 2
    return np.clip(grey, -beyond, 1 + beyond, out=grey).astype(np.float32, copy=False)


def working_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The floating type that holds every value of a type exactly enough: single for 16 bits and for itself."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


def precision(dtype: np.dtype[Any]) -> float:
    """The step from 1 to the next number, in the type that holds a type's values."""
    return float(np.finfo(working_type(dtype)).eps)


def luminance(colours: npt.NDArray[Any], white: float) -> FloatPlane:
    """(..., 3) RGB as grey by Rec. 601. white: the value of a full channel."""
    # Not a matrix product: its last bit depends on the memory layout and on the machine's BLAS.
    grey = np.zeros(colours.shape[:-1], dtype=np.float32)
    for channel, weight in enumerate(REC_601):
        grey += colours[..., channel].astype(np.float32) * np.float32(weight / white)
    return np.clip(grey, 0, 1, out=grey)


def unusable(values: npt.NDArray[Any]) -> Mask | None:
    """(H, W), where numbers are not finite; None where all are, which is quick to see for integers."""
    if values.dtype.kind != "f":
        return None
    finite = np.isfinite(values)
    return None if finite.all() else ~finite


def _halves_in_order(numbers: npt.NDArray[Any], ranks: list[int]) -> npt.NDArray[Any]:
    """Half of the numbers that are at some ranks: differences of numbers may overflow where those of halves do not."""
    if numbers.dtype == np.uint8:  # few enough to be counted
        up_to = np.bincount(numbers, minlength=256).cumsum()  # (256,) how many are no greater
        return up_to.searchsorted(ranks, side="right") * 0.5
    halves: npt.NDArray[Any] = numbers * 0.5
    halves.partition(ranks)
    return halves[ranks]


def _between(low: Any, high: Any, part: float) -> float:
    """The point on the line from one number to another, nearer to the end that it is computed from."""
    way = float(high - low)  # in the precision of the numbers
    return float(low) + way * part if part < 0.5 else float(high) - way * (1 - part)


def _coincide(low: float, high: float, rounding: float) -> bool:
    return not high / 2 - low / 2 > rounding / 2 * max(abs(low), abs(high))


def _narrowed(values: npt.NDArray[Any], known: Mask | None, intensity: Intensity, *, inverted: bool) -> FloatPlane:
    """(H, W) numbers of any size in what single precision can tell apart: what will be about grey is from 0 to 1."""
    seen = values.ravel() if known is None else values[known]
    ends = extent(seen, percents(intensity, inverted=inverted), _STEPS_STORED)
    return np.zeros(values.shape, dtype=np.float32) if ends is None else scale(values, *ends, beyond=OUTLIERS)
