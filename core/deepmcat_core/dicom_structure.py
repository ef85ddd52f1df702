"""A walk over a DICOM data set: its elements as they are written, its depth, and whether it ends too early.

The walk reads tags and lengths (PS3.5 section 7) in one loop with a stack of its own, and keeps the values of what is
wanted. A parser that recurses meets its end at a few hundred nested sequences, one that allocates what a length claims
at four gigabytes, and one that makes an object of every item at a hundred thousand of them. So sequences are counted
and not parsed: where their items are is kept, and an item is walked when somebody asks for it.

Where an element is not written as the standard says, it is taken as pydicom takes it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.tag import BaseTag

from deepmcat_core.errors import ImageTooLarge
from deepmcat_core.frame import Limits

FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA = 0x7FE00008, 0x7FE00009, 0x7FE00010
UNDEFINED = 0xFFFFFFFF

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_BYTES = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}  # by whether it is little endian
_SEQUENCE_END_BYTES = {True: b"\xfe\xff\xdd\xe0", False: b"\xff\xfe\xe0\xdd"}
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_VRS = _LONG_VRS | {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
_VRS_OF_SEQUENCES = frozenset({b"", b"SQ", b"UN"})
_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
_DELIMITERS, _DELIMITER_BYTES = 0xFFFE, (b"\xfe\xff", b"\xff\xfe")  # the group of items and ends
_HEADER = 8  # bytes of an item's tag and length, and of a short element's tag, VR and length


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How elements are written. implicit: without their VR."""

    implicit: bool
    little_endian: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """The items of a sequence: where they begin, and how what surrounds them is written."""

    encoding: Encoding
    offsets: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Outline:
    """What the walk saw.

    elements: those that are wanted, sequences left out; items: of the sequences that are wanted, by tag.
    broken_off: the data end within an element. has_pixels: there is an element of pixel data; has_overlays: of one.
    is_empty: there is no element before the pixel data, wanted or not.
    """

    elements: dict[BaseTag, RawDataElement] = field(default_factory=dict)
    items: dict[int, Items] = field(default_factory=dict)
    broken_off: bool = False
    has_pixels: bool = False
    has_overlays: bool = False
    is_empty: bool = True


@dataclass(frozen=True, slots=True)
class _Level:
    """A sequence or an item being walked. end: offset after it; infinite where a delimiter ends it."""

    end: float
    is_sequence: bool
    encoding: Encoding
    items: Items | None = None


def has_vr(data: bytes, offset: int) -> bool:
    """Whether the element at the offset states its VR."""
    return data[offset + 4 : offset + 6] in _VRS


def encoding_at(data: bytes, offset: int, *, little_endian: bool) -> Encoding:
    """How the data set or item that begins at the offset is written: letters are a VR (PS3.5 6.2.2 for VR UN)."""
    vr = data[offset + 4 : offset + 6]
    return Encoding(implicit=not (vr.isascii() and vr.isalpha() and vr.isupper()), little_endian=little_endian)


def outline(
    data: bytes,
    offset: int,
    encoding: Encoding,
    limits: Limits,
    wanted: Mapping[int, BaseTag],
    *,
    end: float | None = None,
) -> Outline:
    """Walk the data set that starts at the offset, up to and with its pixel data, and no element that starts at `end`.

    end: infinite for an item that a delimiter ends; None for a data set, which the data end.
    Raises ImageTooLarge over `max_depth` or `max_elements`.
    """
    seen = Outline()
    size, ends_with_delimiter = len(data), end is not None
    stop = size if end is None else min(end, size)
    outside = _Level(math.inf, False, encoding)
    here, stack = outside, [outside]
    elements = depth = 0
    while offset < stop:
        while offset >= here.end:
            depth -= stack.pop().is_sequence
            here = stack[-1]
        found = _element(data, offset, here.encoding)
        elements += 1
        if elements > limits.max_elements:
            limits.check_elements(elements)
        if found is None:
            seen.broken_off = True
            return seen
        tag, vr, length, value = found
        offset = value
        if tag >= FLOAT_PIXEL_DATA and (here is outside or tag >= _ITEM):
            if tag == _ITEM:
                if here.items is not None:
                    here.items.offsets.append(value - _HEADER)
                stack.append(_item_level(data, value, length, here.encoding))
                here = stack[-1]
            elif tag in (_ITEM_END, _SEQUENCE_END):
                if here is not outside:
                    depth -= stack.pop().is_sequence
                    here = stack[-1]
                elif ends_with_delimiter:
                    break
            else:
                seen.has_pixels |= tag <= PIXEL_DATA
                if tag in wanted:
                    _keep_pixels(seen, data, found, wanted[tag], encoding)
                offset += 0 if length == UNDEFINED else length
                if tag >= PIXEL_DATA:
                    break
        elif length == UNDEFINED and _is_encapsulated(tag, vr):
            past = _past_fragments(data, value, encoding.little_endian)
            if past is None:
                seen.broken_off = True
                return seen
            offset, fragments = past
            elements += fragments
            limits.check_elements(elements)
            if here is outside:
                seen.is_empty = False
        elif (vr in _VRS_OF_SEQUENCES or length == UNDEFINED) and _is_sequence(data, tag, vr, length, value):
            depth += 1
            if depth > limits.max_depth:
                raise ImageTooLarge(f"the DICOM object nests sequences deeper than {limits.max_depth}, the limit")
            # PS3.5 6.2.2: a sequence of VR UN is written as implicit little endian.
            inside = Encoding(implicit=True, little_endian=True) if vr == b"UN" else here.encoding
            items = None
            if here is outside:
                seen.is_empty = False
                if tag in wanted:
                    items = seen.items[tag] = Items(encoding=inside)
            here = _Level(math.inf if length == UNDEFINED else value + length, True, inside, items)
            stack.append(here)
        else:
            offset += length
            if here is outside:
                seen.is_empty = False
                if tag in wanted:
                    seen.elements[wanted[tag]] = _raw(wanted[tag], vr, length, data[value:offset], value, encoding)
                elif tag >> 16 in _OVERLAY_GROUPS:
                    seen.has_overlays = True
    seen.broken_off = offset > size
    return seen


def item_outline(
    data: bytes, offset: int, encoding: Encoding, limits: Limits, wanted: Mapping[int, BaseTag]
) -> tuple[Outline, Encoding]:
    """Walk the item whose header is at the offset, within a sequence that is written so; and how it is written."""
    length = _LONG[encoding.little_endian].unpack_from(data, offset + 4)[0]
    level = _item_level(data, offset + _HEADER, length, encoding)
    return outline(data, offset + _HEADER, level.encoding, limits, wanted, end=level.end), level.encoding


_SHORT = {True: struct.Struct("<HH2sH"), False: struct.Struct(">HH2sH")}
_PLAIN = {True: struct.Struct("<HHL"), False: struct.Struct(">HHL")}
_LONG = {True: struct.Struct("<L"), False: struct.Struct(">L")}


def _element(data: bytes, offset: int, encoding: Encoding) -> tuple[int, bytes, int, int] | None:
    """Tag, VR (empty if implicit), length and the offset of the value; None where the data end before it."""
    little_endian, left = encoding.little_endian, len(data) - offset
    if left < _HEADER:
        return None
    if not encoding.implicit:
        group, number, vr, length = _SHORT[little_endian].unpack_from(data, offset)
        if vr in _LONG_VRS:
            if left < _HEADER + 4:
                return None
            return group << 16 | number, vr, _LONG[little_endian].unpack_from(data, offset + 8)[0], offset + 12
        if vr in _VRS or (b"AA" <= vr <= b"ZZ" and group != _DELIMITERS):  # an unknown one has a short length
            return group << 16 | number, vr, length, offset + 8
    group, number, length = _PLAIN[little_endian].unpack_from(data, offset)
    return group << 16 | number, b"", length, offset + 8


def _item_level(data: bytes, value: int, length: int, encoding: Encoding) -> _Level:
    """An item whose value is at an offset. Its first element shows how it is written."""
    end = math.inf if length == UNDEFINED else value + length
    if value + _HEADER <= min(end, len(data)) and data[value : value + 2] not in _DELIMITER_BYTES:
        encoding = encoding_at(data, value, little_endian=encoding.little_endian)
    return _Level(end, False, encoding)


def _is_sequence(data: bytes, tag: int, vr: bytes, length: int, value: int) -> bool:
    if length == UNDEFINED or vr == b"SQ":
        return True
    if vr not in (b"", b"UN") or data[value : value + 4] not in _ITEM_BYTES.values():
        return False
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:  # not in the dictionary: private, and left as bytes
        return False


def _is_encapsulated(tag: int, vr: bytes) -> bool:
    """Whether a value of undefined length is in fragments (PS3.5 A.4): of an icon, or private. Else it has items."""
    if vr:
        return vr not in (b"SQ", b"UN")
    try:
        return dictionary_VR(tag).startswith("O")  # OB, OW and those that may be either
    except KeyError:
        return False


def _past_fragments(data: bytes, offset: int, little_endian: bool) -> tuple[int, int] | None:
    """The end of encapsulated data, and how many fragments there are, by their lengths; None where they do not end.

    Where a fragment is none, the delimiter is looked for, as pydicom does.
    """
    begin, fragments = offset, 0
    item, end = _ITEM_BYTES[little_endian], _SEQUENCE_END_BYTES[little_endian]
    while data.startswith(item, offset) and offset + _HEADER <= len(data):
        offset += _HEADER + _LONG[little_endian].unpack_from(data, offset + 4)[0]
        fragments += 1
    if not data.startswith(end, offset):
        offset = data.find(end, begin)
    return None if offset < 0 else (offset + _HEADER, fragments)


def _raw(tag: BaseTag, vr: bytes, length: int, value: bytes, at: int, encoding: Encoding) -> RawDataElement:
    """What pydicom makes a value of when it is touched."""
    name = vr.decode("latin-1") or None
    kept = value if length else empty_value_for_VR(name, raw=True)
    return RawDataElement(tag, name, length, kept, at, encoding.implicit, encoding.little_endian)  # type: ignore[arg-type]


def _keep_pixels(
    seen: Outline, data: bytes, found: tuple[int, bytes, int, int], tag: BaseTag, encoding: Encoding
) -> None:
    """Pixel data to their end; where they have none, they are left out."""
    _, vr, length, value = found
    if length == UNDEFINED:
        past = _past_fragments(data, value, encoding.little_endian)
        if past is None:
            return
        pixels = data[value : past[0] - _HEADER]
    else:
        pixels = data[value : value + length]
    seen.elements[tag] = _raw(tag, vr, length, pixels, value, encoding)
