"""A walk over a DICOM data set before anything parses it: depth, number of elements, and whether it ends too early.

The walk reads tags and lengths and skips values (PS3.5 section 7), in one loop with a stack of its own. A parser that
recurses meets its end at a few hundred nested sequences, and one that allocates what a length claims at four gigabytes.
Whatever looks wrong but breaks no limit is left to the parser, which forgives more than the standard does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR

from deepmcat_core.errors import ImageTooLarge
from deepmcat_core.frame import Limits

FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA = 0x7FE00008, 0x7FE00009, 0x7FE00010
UNDEFINED = 0xFFFFFFFF

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_BYTES = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_VRS = _LONG_VRS | {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How elements are written. implicit: without their VR."""

    implicit: bool
    little_endian: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What the walk saw. broken_off: the data end within an element. has_pixels: there is an element of pixel data."""

    broken_off: bool
    has_pixels: bool


@dataclass(slots=True)
class _Level:
    """A sequence or an item being walked. end: offset after it, or None where a delimiter ends it."""

    end: int | None
    is_sequence: bool
    encoding: Encoding


def has_vr(data: bytes, offset: int) -> bool:
    """Whether the element at the offset states its VR."""
    return data[offset + 4 : offset + 6] in _VRS


def outline(data: bytes, offset: int, encoding: Encoding, limits: Limits) -> Outline:
    """Walk the data set that starts at the offset, up to and with its pixel data.

    Raises ImageTooLarge over `max_depth` or `max_elements`.
    """
    size = len(data)
    stack: list[_Level] = []
    elements = depth = 0
    has_pixels = False
    while offset < size:
        while stack and stack[-1].end is not None and offset >= stack[-1].end:
            depth -= stack.pop().is_sequence
        here = stack[-1].encoding if stack else encoding
        if offset + 8 > size:
            return Outline(broken_off=True, has_pixels=has_pixels)
        tag, vr, length, value = _element(data, offset, here)
        elements += 1
        limits.check_elements(elements)
        offset = value
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= stack.pop().is_sequence if stack else 0
        elif tag == _ITEM:
            stack.append(_Level(None if length == UNDEFINED else value + length, False, here))
        elif tag >= FLOAT_PIXEL_DATA and not stack:
            has_pixels |= tag <= PIXEL_DATA
            offset += 0 if length == UNDEFINED else length
            if tag >= PIXEL_DATA:
                break
        elif _is_sequence(data, tag, vr, length, value, here):
            depth += 1
            if depth > limits.max_depth:
                raise ImageTooLarge(f"the DICOM object nests sequences deeper than {limits.max_depth}, the limit")
            # PS3.5 6.2.2: a sequence of VR UN is written as implicit little endian.
            inside = Encoding(implicit=True, little_endian=True) if vr == b"UN" else here
            stack.append(_Level(None if length == UNDEFINED else value + length, True, inside))
        else:
            offset += length
    return Outline(broken_off=offset > size, has_pixels=has_pixels)


def _element(data: bytes, offset: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
    """Tag, VR (empty if implicit), length and the offset of the value."""
    order = "<" if encoding.little_endian else ">"
    group, number = struct.unpack_from(order + "HH", data, offset)
    tag = group << 16 | number
    if encoding.implicit or group == 0xFFFE:
        return tag, b"", struct.unpack_from(order + "L", data, offset + 4)[0], offset + 8
    vr = data[offset + 4 : offset + 6]
    if vr in _LONG_VRS:
        if offset + 12 > len(data):
            return tag, vr, len(data), offset + 12
        return tag, vr, struct.unpack_from(order + "L", data, offset + 8)[0], offset + 12
    return tag, vr, struct.unpack_from(order + "H", data, offset + 6)[0], offset + 8


def _is_sequence(data: bytes, tag: int, vr: bytes, length: int, value: int, encoding: Encoding) -> bool:
    if length == UNDEFINED or vr == b"SQ":
        return True
    if not encoding.implicit or data[value : value + 4] not in _ITEM_BYTES:
        return False
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:  # not in the dictionary: private, which the parser leaves as bytes
        return False
