"""Damage to what is within a fragment: the markers and headers of JPEG, JPEG-LS, JPEG 2000 and RLE.

Lengths around them stay right, so that it is the codec that meets the damage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from .damage_bytes import Damage
from .elements import fragments

_JPEG_MARKERS = (
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC4,
    0xC7,
    0xC9,
    0xCB,
    0xCC,
    0xD0,
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xDC,
    0xDD,
    0xE0,
    0xEE,
    0xF7,
    0xF8,
    0xFE,
)
_J2K_MARKERS = (
    0x4F,
    0x50,
    0x51,
    0x52,
    0x53,
    0x55,
    0x57,
    0x58,
    0x5C,
    0x5D,
    0x5E,
    0x5F,
    0x60,
    0x61,
    0x63,
    0x64,
    0x90,
    0x91,
    0x92,
    0x93,
    0xD9,
)
_SHORTS = (0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 255, 256, 4096, 0x7FFF, 0x8000, 0xFFFF)
_LONGS = (0, 1, 2, 7, 8, 64, 255, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC7, 0xCB, 0xF7})


def other_marker(data: bytes, rng: Random) -> bytes:
    """A marker is another."""

    def change(frame: bytes) -> bytes:
        at = rng.choice(_markers(frame) or [0])
        kinds = _J2K_MARKERS if frame.startswith(b"\xff\x4f") else _JPEG_MARKERS
        return frame[: at + 1] + bytes([rng.choice(kinds)]) + frame[at + 2 :]

    return _in_fragment(data, rng, change)


def marker_length(data: bytes, rng: Random) -> bytes:
    """A marker segment claims another length."""

    def change(frame: bytes) -> bytes:
        at = rng.choice(_markers(frame) or [0]) + 2
        return frame[:at] + struct.pack(">H", rng.choice(_SHORTS)) + frame[at + 2 :]

    return _in_fragment(data, rng, change)


def marker_content(data: bytes, rng: Random) -> bytes:
    """A byte or more of a marker segment is another: a table, a sampling factor, a scan, a number of levels …"""

    def change(frame: bytes) -> bytes:
        at = rng.choice(_markers(frame) or [0]) + rng.randint(2, 24)
        piece = rng.choice(
            (bytes([rng.randrange(256)]), struct.pack(">H", rng.choice(_SHORTS)), struct.pack(">L", rng.choice(_LONGS)))
        )
        return (frame[:at] + piece + frame[at + len(piece) :])[: max(len(frame), at)]

    return _in_fragment(data, rng, change)


def lose_segment(data: bytes, rng: Random) -> bytes:
    """A marker segment is missing."""

    def change(frame: bytes) -> bytes:
        markers = [*_markers(frame), len(frame)]
        chosen = rng.randrange(max(1, len(markers) - 1))
        return frame[: markers[chosen]] + frame[markers[min(chosen + 1, len(markers) - 1)] :]

    return _in_fragment(data, rng, change)


def repeat_segment(data: bytes, rng: Random) -> bytes:
    """A marker segment is there more than once: two frames, a hundred scans, tables that replace each other."""

    def change(frame: bytes) -> bytes:
        markers = [*_markers(frame), len(frame)]
        chosen = rng.randrange(max(1, len(markers) - 1))
        end = markers[min(chosen + 1, len(markers) - 1)]
        return frame[:end] + frame[markers[chosen] : end] * rng.choice((1, 2, 100)) + frame[end:]

    return _in_fragment(data, rng, change)


def jpeg_frame_header(data: bytes, rng: Random) -> bytes:
    """SOF with another precision, number of components, sampling or table; the size rarely: that is checked."""

    def change(frame: bytes) -> bytes:
        starts = [at for at in _markers(frame) if frame[at + 1] in _SOF]
        if not starts:
            return frame
        at = starts[0] + rng.choice((4, 4, 5, 6, 7, 8, 9, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18))
        return (
            frame[:at]
            + bytes([rng.choice((0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 0x11, 0x21, 0x22, 0x44, 255))])
            + frame[at + 1 :]
        )

    return _in_fragment(data, rng, change)


def j2k_size(data: bytes, rng: Random) -> bytes:
    """SIZ (ISO/IEC 15444-1 A.5.1) with other offsets, tiles, precision or subsampling; mostly of the same size."""

    def change(frame: bytes) -> bytes:
        if not frame.startswith(b"\xff\x4f\xff\x51"):
            return frame
        if rng.random() < 0.3:  # the same size, further from the origin
            width, height = struct.unpack_from(">LL", frame, 8)
            x, y = rng.choice(_LONGS), rng.choice(_LONGS)
            return frame[:8] + struct.pack(">4L", (width + x) % 2**32, (height + y) % 2**32, x, y) + frame[24:]
        if rng.random() < 0.5:  # tile size and offset
            at = rng.choice((24, 28, 32, 36))
            return frame[:at] + struct.pack(">L", rng.choice(_LONGS)) + frame[at + 4 :]
        at = rng.choice((6, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50))
        return frame[:at] + bytes([rng.choice((0, 1, 2, 7, 8, 15, 31, 37, 38, 0x87, 0x8F, 255))]) + frame[at + 1 :]

    return _in_fragment(data, rng, change)


def rle_header(data: bytes, rng: Random) -> bytes:
    """An RLE frame with another number of segments or another offset (PS3.5 G.5)."""

    def change(frame: bytes) -> bytes:
        at = 4 * rng.randrange(16)
        number = rng.choice((*_LONGS, 64, 65, len(frame), len(frame) - 1, len(frame) + 1))
        return frame[:at] + struct.pack("<L", max(0, number)) + frame[at + 4 :]

    return _in_fragment(data, rng, change)


def entropy(data: bytes, rng: Random) -> bytes:
    """Bytes of the coded pixels are others, or their end is missing."""

    def change(frame: bytes) -> bytes:
        start = ([at for at in _markers(frame) if frame[at + 1] in (0xDA, 0x93)] or [min(64, len(frame) - 1)])[-1]
        if rng.random() < 0.3:
            return frame[: rng.randint(start, len(frame))]
        out = bytearray(frame)
        for _ in range(rng.choice((1, 3, 20))):
            out[rng.randrange(start, len(out))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        return bytes(out)

    return _in_fragment(data, rng, change)


def in_file_format(data: bytes, rng: Random) -> bytes:
    """The codestream in a JP2 file around it, whole or nearly so, which is wrong in DICOM and occurs."""

    def change(frame: bytes) -> bytes:
        boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
        header = (
            b"\0\0\0\x2djp2h\0\0\0\x16ihdr"
            + rng.randbytes(14)
            + b"\0\0\0\x0fcolr\x01\0\0\0\0\0"
            + bytes([rng.choice((16, 17, 18))])
        )
        length = rng.choice((0, 8 + len(frame), 1, 2**31))
        return boxes + rng.choice((header, b"")) + struct.pack(">L", length) + b"jp2c" + frame

    return _in_fragment(data, rng, change)


def _in_fragment(data: bytes, rng: Random, change: Callable[[bytes], bytes]) -> bytes:
    """A fragment changed, its length kept right; a file that has none, such as a JPEG, changed as a whole."""
    found = [element for element in fragments(data)[1:] if element.end(len(data)) > element.value + 4]
    if not found:
        return change(data) if data.startswith(b"\xff\xd8") else data
    element = rng.choice(found)
    frame = change(data[element.value : element.end(len(data))])
    frame += b"\0" * (len(frame) % 2)
    return data[: element.length_at] + struct.pack("<L", len(frame)) + frame + data[element.end(len(data)) :]


def _markers(frame: bytes) -> list[int]:
    """Where markers seem to be, in the coded pixels as well, the first 200 of them."""
    found, at = [], frame.find(b"\xff")
    while 0 <= at < len(frame) - 1 and len(found) < 200:
        if frame[at + 1] not in (0, 0xFF):
            found.append(at)
        at = frame.find(b"\xff", at + 1)
    return found


ALL: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        other_marker, marker_length, marker_content, lose_segment, repeat_segment, jpeg_frame_header, j2k_size,
        rle_header, entropy, in_file_format,
    )
}  # fmt: skip
