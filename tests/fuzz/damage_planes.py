"""Damage to PNG and TIFF: chunks with their checksums right, entries of directories. JPEG has DICOM's markers."""

from __future__ import annotations

import struct
import zlib
from random import Random

from .damage_bytes import Damage

_PNG = b"\x89PNG\r\n\x1a\n"
_LONGS = (0, 1, 2, 3, 8, 16, 255, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_TIFF_TAGS = (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530)


def png_chunk(data: bytes, rng: Random) -> bytes:
    """A chunk with another content, type or place, and a checksum that fits."""
    chunks = _chunks(data)
    if not chunks:
        return data
    chosen = rng.randrange(len(chunks))
    kind, content = chunks[chosen]
    match rng.randrange(6):
        case 0:
            at = rng.randrange(max(1, len(content)))
            content = content[:at] + bytes([rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))]) + content[at + 1 :]
        case 1 if len(content) >= 4:
            at = rng.randrange(len(content) - 3)
            content = content[:at] + struct.pack(">L", rng.choice(_LONGS)) + content[at + 4 :]
        case 2:
            kind = rng.choice(
                (
                    b"IHDR",
                    b"IDAT",
                    b"PLTE",
                    b"tRNS",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"zTXt",
                    b"iCCP",
                    b"eXIf",
                    b"IEND",
                    b"zzzz",
                )
            )
        case 3:
            content = zlib.compress(rng.randbytes(rng.choice((0, 1, 50, 5000))))
        case 4:
            chunks.insert(rng.randrange(len(chunks)), (kind, content))
        case _:
            content = content[: len(content) // 2]
    chunks[chosen] = kind, content
    return _PNG + b"".join(_chunk(*chunk) for chunk in chunks)


def tiff_entry(data: bytes, rng: Random) -> bytes:
    """An entry of a directory with another tag, type, count or value."""
    if data[:2] not in (b"II", b"MM") or len(data) < 8:
        return data
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "L", data, 4)[0]
    if directory + 2 > len(data):
        return data
    count = struct.unpack_from(order + "H", data, directory)[0]
    at = directory + 2 + 12 * rng.randrange(max(1, min(count, 100)))
    match rng.randrange(5):
        case 0:
            return _written(data, at, struct.pack(order + "H", rng.choice(_TIFF_TAGS)))
        case 1:
            return _written(
                data, at + 2, struct.pack(order + "H", rng.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 99)))
            )
        case 2:
            return _written(data, at + 4, struct.pack(order + "L", rng.choice(_LONGS)))
        case 3:
            return _written(
                data,
                at + 8,
                struct.pack(order + "H", rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 32773, 34712, 50000, 65535))),
            )
        case _:
            return _written(data, at + 8, struct.pack(order + "L", rng.choice((*_LONGS, directory, len(data)))))


def tiff_next(data: bytes, rng: Random) -> bytes:
    """A chain of directories that goes on: in a circle, or to somewhere else."""
    if data[:2] not in (b"II", b"MM") or len(data) < 8:
        return data
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "L", data, 4)[0]
    if directory + 2 > len(data):
        return data
    count = struct.unpack_from(order + "H", data, directory)[0]
    return _written(
        data, directory + 2 + 12 * count, struct.pack(order + "L", rng.choice((directory, 8, 0, len(data), 2**31)))
    )


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(_PNG)
    while data.startswith(_PNG) and at + 8 <= len(data):
        length = struct.unpack_from(">L", data, at)[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def _written(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :] if at < len(data) else data


ALL: dict[str, Damage] = {damage.__name__: damage for damage in (png_chunk, tiff_entry, tiff_next)}
