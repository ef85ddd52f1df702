"""Damage to any file: bits turned, pieces lost, doubled and blanked, the end cut off."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Damage = Callable[[bytes, Random], bytes]
"""From a file to a damaged one; the file as it is where there is nothing of its kind to damage."""

# Numbers at which counts, lengths and offsets go wrong.
_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def turn_bits(data: bytes, rng: Random) -> bytes:
    """Some bits are another."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def write_number(data: bytes, rng: Random) -> bytes:
    """A number of one to four bytes, somewhere."""
    width, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    at = rng.randrange(len(data))
    number = rng.choice(_NUMBERS) % 256**width
    return data[:at] + number.to_bytes(width, order) + data[at + width :]


def cut_off(data: bytes, rng: Random) -> bytes:
    """The end is missing."""
    return data[: rng.randrange(1, len(data) + 1)]


def lose(data: bytes, rng: Random) -> bytes:
    """A piece is missing."""
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 2, 4, 8, 64, 512)) :]


def double(data: bytes, rng: Random) -> bytes:
    """A piece is there twice."""
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((1, 2, 8, 64, 512))]
    return data[:at] + piece * rng.choice((2, 2, 2, 50)) + data[at + len(piece) :]


def blank(data: bytes, rng: Random) -> bytes:
    """A piece is all zeros or all ones."""
    at, count = rng.randrange(len(data)), rng.choice((2, 16, 512))
    return data[:at] + bytes([rng.choice((0, 255))]) * len(data[at : at + count]) + data[at + count :]


def append(data: bytes, rng: Random) -> bytes:
    """Something follows the end."""
    return data + rng.randbytes(rng.choice((1, 2, 8, 300)))


ALL: dict[str, Damage] = {
    damage.__name__: damage for damage in (turn_bits, write_number, cut_off, lose, double, blank, append)
}
