"""Pixels by level: samples of 8 and 16 bits have few values, and lookup tables and windows see the value alone.

So they see each value that there may be once, and four million pixels are only looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.frame import FloatPlane

_AT_ONCE = 2**17  # codes whose 64-bit indices, which numpy makes of them, stay in a processor's cache


def by_level(values: npt.NDArray[Any], change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """(H, W) values as `change` has them, in float32 where there are few of them.

    change: of any number of values, one by one; it must not look at where a pixel is.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return change(values)
    native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    codes = native.view(f"u{native.dtype.itemsize}").ravel()  # a signed value by its bits
    levels = np.arange(int(codes.max(initial=0)) + 1, dtype=codes.dtype)
    if levels.size >= codes.size:
        return change(values)
    table = change(levels.view(native.dtype)).astype(np.float32, copy=False)
    return _look_up(table, codes).reshape(values.shape)


def _look_up(table: FloatPlane, codes: npt.NDArray[Any]) -> FloatPlane:
    """(N,) the table's entries for codes, all of which are in it."""
    found = np.empty(len(codes), dtype=np.float32)
    for start in range(0, len(codes), _AT_ONCE):  # mode: without it, numpy checks into a buffer first
        np.take(table, codes[start : start + _AT_ONCE], out=found[start : start + _AT_ONCE], mode="clip")
    return found
