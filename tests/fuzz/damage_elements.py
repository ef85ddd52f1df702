"""Damage to the elements of a DICOM file: lengths, VRs, values, order, nesting, delimiters, file meta group."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from .damage_bytes import Damage
from .elements import ITEM, ITEM_END, LONG_VRS, SEQUENCE_END, TRANSFER_SYNTAX, Element, data_set_start, elements
from .objects import CANARY_TEXT, SYNTAXES

_VRS = (
    *sorted(LONG_VRS),
    b"AT",
    b"CS",
    b"DS",
    b"FD",
    b"FL",
    b"IS",
    b"LO",
    b"PN",
    b"SL",
    b"SS",
    b"UI",
    b"UL",
    b"US",
    b"??",
)
_LENGTHS = (0, 1, 2, 3, 6, 7, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFE, 0xFFFFFFFF)
_NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 64, 255, 256, 4095, 32767, 32768, 65534, 65535)
_TEXTS = (
    b"", b" ", b"0", b"1", b"-1", b"00", b"1A", b"1e400", b"-1e308", b"1e-320", b"nan", b"inf", b"NaN\\1", b"\\",
    b"1\\2", b"1\\2\\3",
    b"99999999999999999999", b"2147483648", b"0.0000001", b"LINEAR_EXACT", b"SIGMOID", b"INVERSE", b"IDENTITY",
    b"MONOCHROME1", b"MONOCHROME2", b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"YBR_PARTIAL_420", b"YBR_ICT", b"YBR_RCT",
    b"PALETTE COLOR",
    b"ISO 2022 IR 87", b"ISO_IR 192", b"\x1b$B\x7f", b"\xff\xfe", CANARY_TEXT.encode(), CANARY_TEXT.encode() * 40,
)  # fmt: skip

# What the decoding of pixels reads: rows, columns, samples, frames, bits, photometric interpretation, tables …
_READ = frozenset(
    {
        0x00080005, 0x00080016, 0x00080018, 0x00180050, 0x00200032, 0x00280002, 0x00280004, 0x00280006, 0x00280008,
        0x00280010, 0x00280011, 0x00280030, 0x00280034, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120,
        0x00280121, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056, 0x00281101, 0x00281102, 0x00281103,
        0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222, 0x00281223, 0x00283000, 0x00283002, 0x00283006,
        0x00283010, 0x00289110, 0x00289132, 0x00289145, 0x20500020, 0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002,
        0x7FE00008, 0x7FE00009, 0x7FE00010,
    }
)  # fmt: skip


def wrong_length(data: bytes, rng: Random) -> bytes:
    """An element claims more or fewer bytes than it has."""
    if (found := _one(data, rng)) is None:
        return data
    left = len(data) - found.value
    length = rng.choice((*_LENGTHS, found.length + 1, found.length - 1, found.length + 2, left, left + 1, left - 8))
    return _with_length(data, found, length)


def undefined_length(data: bytes, rng: Random) -> bytes:
    """A length that nothing ends, or that a delimiter in the middle of nowhere does."""
    if (found := _one(data, rng, lambda e: e.length_bytes == 4)) is None:
        return data
    out = _with_length(data, found, 0xFFFFFFFF)
    end = rng.choice((found.end(len(data)), found.value))
    delimiter = rng.choice((b"", _delimiter(found, ITEM_END), _delimiter(found, SEQUENCE_END)))
    return out[:end] + delimiter + out[end:]


def wrong_vr(data: bytes, rng: Random) -> bytes:
    """An element states another VR, of the other kind of length perhaps."""
    if (found := _one(data, rng, lambda e: e.vr is not None)) is None or found.vr is None:
        return data
    return data[: found.vr] + rng.choice(_VRS) + data[found.vr + 2 :]


def wrong_value(data: bytes, rng: Random) -> bytes:
    """A value is another, of a fitting length: a number for two bytes and four, a text for the rest."""
    if (found := _one(data, rng, lambda e: e.tag != ITEM)) is None:
        return data
    if found.length in (2, 4, 6) and rng.random() < 0.8:
        words = [rng.choice(_NUMBERS) for _ in range(found.length // 2)]
        value = struct.pack(f"{found.order}{len(words)}H", *words)
    else:
        value = rng.choice(_TEXTS)
        value += b" " * (len(value) % 2)
    return _with_value(data, found, value)


def wrong_size(data: bytes, rng: Random) -> bytes:
    """The value of an element is there in part, or several times."""
    if (found := _one(data, rng, lambda e: e.tag != ITEM)) is None:
        return data
    value = data[found.value : found.end(len(data))]
    return _with_value(
        data, found, rng.choice((b"", value[: len(value) // 2], value[:-1], value[:-2], value * 2, value * 9))
    )


def remove(data: bytes, rng: Random) -> bytes:
    """An element is missing; an item of functional groups perhaps."""
    if (found := _one(data, rng)) is None:
        return data
    return data[: found.start] + data[found.end(len(data)) :]


def repeat(data: bytes, rng: Random) -> bytes:
    """An element is there more than once."""
    if (found := _one(data, rng)) is None:
        return data
    end = found.end(len(data))
    return data[:end] + data[found.start : end] * rng.choice((1, 1, 2, 40)) + data[end:]


def move(data: bytes, rng: Random) -> bytes:
    """An element is somewhere else: out of order, within another, after the pixel data."""
    if (found := _one(data, rng)) is None or (other := _one(data, rng)) is None:
        return data
    piece, rest = data[found.start : found.end(len(data))], data[: found.start] + data[found.end(len(data)) :]
    at = min(other.start, len(rest))
    return rest[:at] + piece + rest[at:]


def nest(data: bytes, rng: Random) -> bytes:
    """An element lies within sequences within sequences."""
    if (found := _one(data, rng, lambda e: e.tag != ITEM)) is None:
        return data
    order, depth = found.order, rng.choice((1, 2, 30, 33, 400))
    undefined = struct.pack(order + "L", 0xFFFFFFFF)
    sequence = struct.pack(order + "HH", 0x0040, 0xA730) + (b"SQ\0\0" if found.vr is not None else b"") + undefined
    item = struct.pack(order + "HH", ITEM >> 16, ITEM & 0xFFFF) + undefined
    ends = _delimiter(found, ITEM_END) + _delimiter(found, SEQUENCE_END)
    end = found.end(len(data))
    closing = ends * rng.choice((depth, depth, depth, 0, depth + 3, depth // 2))
    return data[: found.start] + (sequence + item) * depth + data[found.start : end] + closing + data[end:]


def stray_delimiter(data: bytes, rng: Random) -> bytes:
    """An item, the end of one or the end of a sequence, where none can be."""
    if (found := _one(data, rng)) is None:
        return data
    at = rng.choice((found.start, found.value, found.end(len(data))))
    return data[:at] + _delimiter(found, rng.choice((ITEM, ITEM_END, SEQUENCE_END))) + data[at:]


def other_syntax(data: bytes, rng: Random) -> bytes:
    """The file meta group names a transfer syntax that the data set is not in, or none."""
    stated = [e for e in elements(data) if e.tag == TRANSFER_SYNTAX]
    if not stated:
        return data
    known = str(rng.choice(SYNTAXES))
    uid = rng.choice(
        (
            known,
            known,
            known,
            known,
            "",
            "1.2.840.10008.1.2.4.100",
            "1.2.840.10008.1.2.4.94",
            "1.2.840.10008.1.2.8.1",
            "1.2.3.7719377193",
        )
    ).encode()
    return _with_value(data, stated[0], uid + b"\0" * (len(uid) % 2))


def without_preamble(data: bytes, rng: Random) -> bytes:
    """As over the network: the data set alone, or with its file meta group, or with a preamble and no prefix."""
    return rng.choice((data[data_set_start(data) :], data[132:], data[:128] + data[132:]))


def only_preamble(data: bytes, rng: Random) -> bytes:
    """A preamble before a data set without file meta group; of a program perhaps (PS3.10 7.1)."""
    return (
        rng.choice((b"\0\0\0\0", b"MZ\x90\0", b"\x7fELF", b"II*\0")).ljust(128, b"\0")
        + b"DICM"
        + data[data_set_start(data) :]
    )


def _one(data: bytes, rng: Random, suits: Callable[[Element], bool] = lambda element: True) -> Element | None:
    """An element, one that the decoding of pixels reads more often than not."""
    found = [element for element in elements(data) if suits(element)]
    read = [element for element in found if element.tag in _READ]
    pool = read if read and rng.random() < 0.6 else found
    return rng.choice(pool) if pool else None


def _with_length(data: bytes, element: Element, length: int) -> bytes:
    written = struct.pack(
        element.order + ("L" if element.length_bytes == 4 else "H"), length % 256**element.length_bytes
    )
    return data[: element.length_at] + written + data[element.length_at + element.length_bytes :]


def _with_value(data: bytes, element: Element, value: bytes) -> bytes:
    """The value and its length; the lengths of sequences around it stay what they were."""
    length = len(value) if element.length != 0xFFFFFFFF else element.length
    return _with_length(data[: element.value] + value + data[element.end(len(data)) :], element, length)


def _delimiter(element: Element, tag: int) -> bytes:
    return struct.pack(element.order + "HHL", tag >> 16, tag & 0xFFFF, 0)


ALL: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        wrong_length, undefined_length, wrong_vr, wrong_value, wrong_size, remove, repeat, move, nest, stray_delimiter,
        other_syntax, without_preamble, only_preamble,
    )
}  # fmt: skip
