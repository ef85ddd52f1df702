"""Grey by level: samples of 8 and 16 bits have few values, and what is done to a pixel depends on its value alone.

So it is done once for each value that occurs, counted; four million pixels are only counted and looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.frame import FloatPlane

Counts = npt.NDArray[np.intp]
_Codes = npt.NDArray[np.unsignedinteger[Any]]

_AT_ONCE = 2**17  # codes whose 64-bit indices, which numpy makes of them, stay in a processor's cache


def by_level(values: npt.NDArray[Any], grey: Callable[[npt.NDArray[Any], Counts | None], FloatPlane]) -> FloatPlane:
    """(H, W) values as `grey` has them.

    grey: of (1, N) different values and how often each occurs, or of all pixels and None where there may be too many
    values. It must not look at where a pixel is.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return grey(values, None)
    native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    codes: _Codes = native.view(f"u{native.dtype.itemsize}").ravel()  # a signed value by its bits
    counts = _count(codes)
    present = np.flatnonzero(counts)
    table = np.zeros(len(counts), dtype=np.float32)
    table[present] = grey(present.astype(codes.dtype).view(native.dtype)[None], counts[present][None])[0]
    return _look_up(table, codes).reshape(values.shape)


def _count(codes: _Codes) -> Counts:
    """(C,) how often each code up to the highest occurs."""
    counts = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.intp)
    for start in range(0, len(codes), _AT_ONCE):
        counts += np.bincount(codes[start : start + _AT_ONCE], minlength=len(counts))
    return counts


def _look_up(table: FloatPlane, codes: _Codes) -> FloatPlane:
    """(N,) the table's entries for codes, all of which are in it."""
    found = np.empty(len(codes), dtype=np.float32)
    for start in range(0, len(codes), _AT_ONCE):  # mode: without it, numpy checks into a buffer first
        np.take(table, codes[start : start + _AT_ONCE], out=found[start : start + _AT_ONCE], mode="clip")
    return found


def percentiles(values: npt.NDArray[Any], percents: tuple[float, float], counts: Counts | None) -> tuple[float, float]:
    """What np.percentile has for the values, to the bit. counts: how often each occurs; None: once."""
    if counts is None:
        low, high = np.percentile(values, percents)
        return float(low), float(high)
    order = np.argsort(values)
    ordered, until = values[order], np.cumsum(counts[order])
    last = until[-1] - 1
    position = last * np.true_divide(percents, 100)
    before = np.floor(position)
    a, b = (ordered[np.searchsorted(until, at, side="right")] for at in (before, np.minimum(before + 1, last)))
    part, step = position - before, b - a
    # From the nearer end, as numpy does it.
    low, high = np.where(part >= 0.5, b - step * (1 - part), a + step * part)
    return float(low), float(high)
