"""From numbers to grey: the stretch between percentiles, and the luminance of colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.frame import FloatPlane, Intensity
from deepmcat_core.levels import Counts, percentiles

Mask = npt.NDArray[np.bool_]

# Rec. ITU-R BT.601: what YBR_FULL's Y is (PS3.3 C.7.6.3.1.2), and what Pillow uses.
REC_601 = (0.299, 0.587, 0.114)


def stretch(
    values: npt.NDArray[Any],
    intensity: Intensity,
    ignored: Mask | None = None,
    *,
    inverted: bool = False,
    counts: Counts | None = None,
) -> FloatPlane:
    """(H, W) numbers as grey: the low percentile becomes 0, the high one 1, values beyond them are clipped.

    ignored: (H, W), pixels that say nothing about the range, such as padding; they are stretched like the others.
    inverted: the lowest value is white; the percentiles are then counted from the other end, so that a picture stored
    either way looks the same. counts: how often each number occurs; None: once.
    Where the percentiles coincide (a mask with few pixels set) minimum and maximum are used; a constant image is black.
    """
    used = np.s_[...] if ignored is None else ~ignored
    known = values[used].ravel()
    if known.size == 0:
        return np.zeros(values.shape, dtype=np.float32)
    percents = (100 - intensity.high, 100 - intensity.low) if inverted else (intensity.low, intensity.high)
    low, high = percentiles(known, percents, None if counts is None else counts[used].ravel())
    if not low < high:
        low, high = float(known.min()), float(known.max())
    if not low < high:
        return np.zeros(values.shape, dtype=np.float32)
    grey = scale(values, low, high)
    return 1 - grey if inverted else grey


def deep_grey(values: npt.NDArray[Any], intensity: Intensity, counts: Counts | None, *, inverted: bool) -> FloatPlane:
    """(H, W) numbers stretched, and those that are none black: a plane that comes without a DICOM header."""
    ignored = unusable(values)
    grey = stretch(values, intensity, ignored, inverted=inverted, counts=counts)
    if ignored is not None:
        grey[ignored] = 0
    return grey


def scale(values: npt.NDArray[Any], low: float, high: float) -> FloatPlane:
    """(H, W) numbers as grey: `low` becomes 0 and `high` 1, values beyond are clipped. low < high."""
    # Halved before differences are taken: high - low may overflow where neither does.
    grey = values.astype(working_type(values.dtype))
    grey *= 0.5
    grey -= low / 2
    grey /= high / 2 - low / 2
    return np.clip(grey, 0, 1, out=grey).astype(np.float32, copy=False)


def working_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The floating type that holds every value of a type exactly enough: single for 16 bits and for itself."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


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
