"""Where the elements of a DICOM file are, so that damage can be done to a length, a VR, a value or an item.

Forgiving and without limits: it reads what objects.py writes, and as much of damaged ones as makes sense.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA, ITEM, ITEM_END, SEQUENCE_END = 0x7FE00010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
TRANSFER_SYNTAX = 0x00020010

_PREAMBLE = 132


@dataclass(frozen=True, slots=True)
class Element:
    """An element, an item or a delimiter of a file: offsets into it. vr: None where it is not stated."""

    tag: int
    start: int
    vr: int | None
    length_at: int
    length_bytes: int
    length: int
    value: int
    order: str  # < or >

    def end(self, size: int) -> int:
        """The offset after the value; that of the value where the length is undefined, as what follows is inside."""
        return self.value if self.length == UNDEFINED else min(size, self.value + self.length)


def elements(data: bytes) -> list[Element]:
    """Every element, those in sequences and the fragments of pixel data too, in their order."""
    found: list[Element] = []
    offset, stated = _PREAMBLE if data[128:132] == b"DICM" else 0, ""
    implicit, order = not _has_vr(data, offset), "<"
    in_meta = data[offset : offset + 2] == b"\x02\x00"
    while offset + 8 <= len(data):
        if in_meta and data[offset : offset + 2] != b"\x02\x00":
            if stated == DeflatedExplicitVRLittleEndian:
                break
            in_meta = False
            implicit, order = stated == ImplicitVRLittleEndian, "><"[stated != ExplicitVRBigEndian]
        element = _element(data, offset, implicit, order)
        if element is None:
            break
        if element.tag == TRANSFER_SYNTAX:
            stated = data[element.value : element.end(len(data))].rstrip(b"\0 ").decode("latin-1")
        found.append(element)
        is_nested = element.tag == ITEM and not _in_pixels(found)
        offset = element.value if is_nested or _is_sequence(data, element) else element.end(len(data))
    return found


def data_set_start(data: bytes) -> int:
    """The offset after the file meta group."""
    last = [element for element in elements(data) if element.tag >> 16 == 2]
    return last[-1].end(len(data)) if last else 0


def fragments(data: bytes) -> list[Element]:
    """The items of encapsulated pixel data, the Basic Offset Table first; [] where there are none."""
    everything = elements(data)
    starts = [n for n, e in enumerate(everything) if e.tag == PIXEL_DATA and e.length == UNDEFINED]
    if not starts:
        return []
    return [e for e in everything[starts[-1] + 1 :] if e.tag == ITEM]


def _element(data: bytes, offset: int, implicit: bool, order: str) -> Element | None:
    group, number = struct.unpack_from(order + "HH", data, offset)
    tag = group << 16 | number
    if implicit or group == 0xFFFE:
        length = struct.unpack_from(order + "L", data, offset + 4)[0]
        return Element(tag, offset, None, offset + 4, 4, length, offset + 8, order)
    if data[offset + 4 : offset + 6] not in LONG_VRS:
        length = struct.unpack_from(order + "H", data, offset + 6)[0]
        return Element(tag, offset, offset + 4, offset + 6, 2, length, offset + 8, order)
    if offset + 12 > len(data):
        return None
    length = struct.unpack_from(order + "L", data, offset + 8)[0]
    return Element(tag, offset, offset + 4, offset + 8, 4, length, offset + 12, order)


def _in_pixels(found: list[Element]) -> bool:
    return any(element.tag == PIXEL_DATA for element in found)


def _is_sequence(data: bytes, element: Element) -> bool:
    if element.length == UNDEFINED:
        return True
    item = struct.pack(element.order + "HH", ITEM >> 16, ITEM & 0xFFFF)
    stated = element.vr is None or data[element.vr : element.vr + 2] == b"SQ"
    return stated and element.tag not in (ITEM, PIXEL_DATA) and data[element.value : element.value + 4] == item


def _has_vr(data: bytes, offset: int) -> bool:
    return data[offset + 4 : offset + 6].isalpha() and data[offset + 4 : offset + 6].isupper()
