"""Where the frames are in encapsulated pixel data (PS3.5 A.4), found in one walk over its fragments.

pydicom walks from the start for every frame that it is asked for.
"""

from __future__ import annotations

import struct
from functools import cached_property

from pydicom.encaps import parse_basic_offsets

from deepmcat_core.dicom_structure import UNDEFINED
from deepmcat_core.errors import CorruptImage
from deepmcat_core.frame import Limits

_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_END_OF_IMAGE = b"\xff\xd9"  # ends a JPEG and a JPEG 2000 codestream, but for padding
_HEADER = 8  # tag and length of an item


class EncapsulatedFrames:
    """The frames of pixel data. Raises CorruptImage where they cannot be told apart, and may raise what pydicom raises.

    data: the value of Pixel Data. count: frames claimed. extended: the Extended Offset Table and its lengths, if any.
    Raises ImageTooLarge for more fragments than `limits` allow elements.
    """

    def __init__(
        self, data: bytes, count: int, extended: tuple[bytes, bytes] | None = None, limits: Limits | None = None
    ) -> None:
        self._data = data
        self._count = count
        self._extended = extended
        self._items = _items(data, limits or Limits())[1:]  # the first item is the Basic Offset Table
        if count > len(self._items):
            raise CorruptImage(f"the DICOM image claims {count} frames and has {len(self._items)} fragments")

    def __getitem__(self, index: int) -> bytes:
        """The codestream of a frame."""
        if self._extended and not self._is_plain:
            return self._at(*(_entry(table, index) for table in self._extended))
        starts = self._starts
        if index >= len(starts):
            raise CorruptImage("the DICOM image has fewer frames than it claims")
        end = starts[index + 1] if index + 1 < len(starts) else len(self._items)
        return b"".join(self._fragment(number) for number in range(starts[index], end))

    @property
    def _is_plain(self) -> bool:
        """Whether no table of offsets is needed, and so none believed: there is one frame, or a fragment for each."""
        return self._count in (1, len(self._items))

    @cached_property
    def _starts(self) -> list[int]:
        """The number of every frame's first fragment."""
        if self._is_plain:
            return list(range(self._count))
        # One with an entry for some frames only, such as a single zero, says nothing.
        if len(offsets := parse_basic_offsets(self._data)) >= self._count:
            numbers = {item - self._items[0]: number for number, item in enumerate(self._items)}
            starts = [numbers.get(offset, -1) for offset in offsets]
            if -1 not in starts and starts == sorted(set(starts)):
                return starts
            # Such as all zero. Where as many codestreams end as there are frames, they need no table to be told apart.
            if len(self._ended) != self._count:
                raise CorruptImage("the offsets to the frames of the DICOM image are not those of fragments")
        return self._ended

    @cached_property
    def _ended(self) -> list[int]:
        """The number of every frame's first fragment: the one after that in which a codestream ends."""
        return [0, *(n + 1 for n in range(len(self._items) - 1) if _END_OF_IMAGE in self._fragment(n)[-10:])]

    def _at(self, offset: int, length: int) -> bytes:
        start = self._items[0] + offset + _HEADER
        if self._data[start - _HEADER : start - 4] != _ITEM:
            raise CorruptImage("the offsets to the frames of the DICOM image are not those of fragments")
        return self._data[start : start + length]

    def _fragment(self, number: int) -> bytes:
        start = self._items[number] + _HEADER
        return self._data[start : start + int.from_bytes(self._data[start - 4 : start], "little")]


def _items(data: bytes, limits: Limits) -> list[int]:
    """The offsets of the items, the Basic Offset Table first (PS3.5 A.4)."""
    offsets: list[int] = []
    offset, end = 0, len(data)
    while offset + _HEADER <= end and data[offset : offset + 4] == _ITEM:
        offsets.append(offset)
        limits.check_elements(len(offsets))
        length = int.from_bytes(data[offset + 4 : offset + _HEADER], "little")
        if length == UNDEFINED:
            raise CorruptImage("a fragment of the DICOM image does not say how long it is")
        offset += _HEADER + length
    if offset + _HEADER <= end and data[offset : offset + 4] != _SEQUENCE_END:
        raise CorruptImage("the pixel data of the DICOM image are not fragments, one after the other")
    return offsets


def _entry(table: bytes, index: int) -> int:
    if 8 * index + 8 > len(table):
        raise CorruptImage("the DICOM image has fewer frames than it claims")
    found: int = struct.unpack_from("<Q", table, 8 * index)[0]
    return found
