"""What once hurt, made again: a few files of each kind of harm, and the answer that each has to get.

Too large to be kept as files, and small to describe: a hazard and a seed say which one exactly.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from .elements import ITEM, ITEM_END, PIXEL_DATA, SEQUENCE_END, data_set_start, elements, fragments
from .objects import make_object

SEEDS = range(3)

_NUMBERS = (0x00280030, 0x00281050, 0x00281053)  # of a few values each: spacing, window, slope
_UNDEFINED = b"\xff\xff\xff\xff"
_ITEM_START, _ITEM_STOP, _SEQUENCE_STOP = (
    struct.pack("<HHL", tag >> 16, tag & 0xFFFF, 0) for tag in (ITEM, ITEM_END, SEQUENCE_END)
)


class Hazard(NamedTuple):
    """A file by its kind and seed, and the reason of the error that it has to get; "" for an image."""

    name: str
    seed: int
    data: bytes
    reason: str


def long_number(seed: int) -> bytes:
    """Values without number where one is wanted, which pydicom would convert one by one; they count as absent."""
    tag = _NUMBERS[seed % len(_NUMBERS)]
    values = b"1\\" * 1_900_000
    element = struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(values)) + values
    return _spliced(make_object(ImplicitVRLittleEndian, "grey 8", seed), element)


def fragment_flood(seed: int) -> bytes:
    """Fragments without number, all of them empty: each costs an entry of a list."""
    data = make_object((JPEGBaseline8Bit, JPEG2000Lossless, JPEGLosslessSV1)[seed % 3], "grey 8", seed)
    first = fragments(data)[0]
    at = first.end(len(data))
    return data[:at] + _ITEM_START * (20_001 + seed) + data[at:]


def item_flood(seed: int) -> bytes:
    """Empty groups of frames without number, one above the limit of elements: each was a data set of pydicom's."""
    number = (0x9230, 0x9229, 0x9230)[seed % 3]
    items = (_ITEM_START if seed % 2 else _ITEM_START[:4] + _UNDEFINED + _ITEM_STOP) * (20_000 if seed % 2 else 10_000)
    return _with_sequence(make_object(ExplicitVRLittleEndian, "grey 8", seed), number, items)


def many_items(seed: int) -> bytes:
    """As many of them as are allowed, or nearly so, of an image that has one frame."""
    items = (_ITEM_START[:4] + struct.pack("<L", 8) + b"\x28\x00\x53\x10DS\0\0") * (9_900 - seed)
    return _with_sequence(make_object(ExplicitVRLittleEndian, "grey 8", seed), (0x9230, 0x9229)[seed % 2], items)


def endless_jpeg_ls(seed: int) -> bytes:
    """A codestream that breaks off without a marker: CharLS counted to 2**31 before it gave up."""
    data = make_object(JPEGLSLossless, "grey 8", seed)
    frame = fragments(data)[1]
    kept = max(40, (frame.length * (seed + 1) // 5) // 2 * 2)
    head = data[: frame.length_at] + struct.pack("<L", kept) + data[frame.value : frame.value + kept]
    return head.replace(b"\xff\xd9", b"\0\0") + _SEQUENCE_STOP


def deflate_bomb(seed: int) -> bytes:
    """A thousand bytes of zeros for each that travels."""
    data = make_object(DeflatedExplicitVRLittleEndian, "grey 8", seed)
    start = data_set_start(data)
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:])
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return data[:start] + stream.compress(inflated + bytes(2 ** (24 + seed % 2))) + stream.flush()


def deep_nesting(seed: int) -> bytes:
    """Sequences within sequences: a parser that recurses ends with the stack."""
    depth = (33, 250, 5_000)[seed % 3]
    opening = struct.pack("<HH", 0x0040, 0x0275) + b"SQ\0\0" + _UNDEFINED + _ITEM_START[:4] + _UNDEFINED
    closing = (_ITEM_STOP + _SEQUENCE_STOP) * depth if seed % 2 else b""
    return _spliced(make_object(ExplicitVRLittleEndian, "grey 8", seed), opening * depth + closing)


def missized_codestream(seed: int) -> bytes:
    """A small image by its header and a huge one by its codestream, which a decoder makes room for."""
    syntax, marker, sides = (
        (JPEGBaseline8Bit, b"\xff\xc0\x00\x0b\x08", ">HH"),
        (JPEG2000Lossless, b"\xff\x4f\xff\x51\x00\x29\x00\x00", ">LL"),
        (JPEGLSLossless, b"\xff\xf7\x00\x0b\x08", ">HH"),
    )[seed % 3]
    data = make_object(syntax, "grey 8", seed)
    at = data.index(marker) + len(marker)
    return data[:at] + struct.pack(sides, 30_000, 30_000) + data[at + struct.calcsize(sides) :]


HAZARDS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "long number": (long_number, ""),
    "fragment flood": (fragment_flood, "IMAGE_TOO_LARGE"),
    "item flood": (item_flood, "IMAGE_TOO_LARGE"),
    "many items": (many_items, ""),
    "endless JPEG-LS": (endless_jpeg_ls, "CORRUPT_IMAGE"),
    "deflate bomb": (deflate_bomb, "IMAGE_TOO_LARGE"),
    "deep nesting": (deep_nesting, "IMAGE_TOO_LARGE"),
    "mis-sized codestream": (missized_codestream, "CORRUPT_IMAGE"),
}


def hazards() -> Iterator[Hazard]:
    """A few of every kind, the same every time."""
    for name, (make, reason) in HAZARDS.items():
        for seed in SEEDS:
            yield Hazard(name, seed, make(seed), reason)


def _with_sequence(data: bytes, number: int, items: bytes) -> bytes:
    return _spliced(data, struct.pack("<HH", 0x5200, number) + b"SQ\0\0" + _UNDEFINED + items + _SEQUENCE_STOP)


def _spliced(data: bytes, element: bytes) -> bytes:
    """A file with something more before its pixel data."""
    at = next(found.start for found in elements(data) if found.tag == PIXEL_DATA)
    return data[:at] + element + data[at:]
