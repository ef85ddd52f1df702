"""Damage to encapsulated pixel data: fragments cut, joined, doubled, lost; offset tables that point elsewhere."""

from __future__ import annotations

import struct
from random import Random

from .damage_bytes import Damage
from .elements import ITEM, SEQUENCE_END, elements, fragments

_EXTENDED_TABLES = frozenset({0x7FE00001, 0x7FE00002})
_OFFSETS = (0, 1, 7, 8, 16, 100, 0x7FFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF)


def cut_fragment(data: bytes, rng: Random) -> bytes:
    """A fragment is two, with its length right or as it was."""
    values = _values(data)
    if (chosen := _one(values, rng)) is None:
        return data
    at = rng.randint(0, len(values[chosen]))
    return _rewritten(data, [*values[:chosen], values[chosen][:at], values[chosen][at:], *values[chosen + 1 :]])


def shorten_fragment(data: bytes, rng: Random) -> bytes:
    """A fragment ends early, or has nothing in it."""
    values = _values(data)
    if (chosen := _one(values, rng)) is None:
        return data
    values[chosen] = values[chosen][: rng.choice((0, 2, 16, 64, 68, len(values[chosen]) // 2, len(values[chosen]) - 2))]
    return _rewritten(data, values)


def join_fragments(data: bytes, rng: Random) -> bytes:
    """All fragments are one."""
    values = _values(data)
    return _rewritten(data, [values[0], b"".join(values[1:])]) if values else data


def repeat_fragment(data: bytes, rng: Random) -> bytes:
    """A fragment is there more than once."""
    values = _values(data)
    if (chosen := _one(values, rng)) is None:
        return data
    return _rewritten(data, [*values[:chosen], *[values[chosen]] * rng.choice((2, 3, 30)), *values[chosen + 1 :]])


def lose_fragment(data: bytes, rng: Random) -> bytes:
    """A fragment is missing; the offset table perhaps."""
    values = _values(data)
    if not values:
        return data
    del values[rng.randrange(len(values))]
    return _rewritten(data, values)


def swap_fragments(data: bytes, rng: Random) -> bytes:
    """Fragments are in another order, the offset table among them."""
    values = _values(data)
    rng.shuffle(values)
    return _rewritten(data, values) if values else data


def odd_fragments(data: bytes, rng: Random) -> bytes:
    """Fragments of odd length, which PS3.5 A.4 does not allow."""
    values = _values(data)
    return (
        _rewritten(data, [values[0], *(value + b"\0" * (len(value) % 2 == 0) for value in values[1:])])
        if values
        else data
    )


def offset_table(data: bytes, rng: Random) -> bytes:
    """A Basic Offset Table of other offsets, more of them, or of half an offset."""
    values = _values(data)
    if not values:
        return data
    offsets = [rng.choice((*_OFFSETS, rng.randrange(4096))) for _ in range(rng.choice((1, len(values), 3, 50)))]
    values[0] = struct.pack(f"<{len(offsets)}L", *offsets) + b"\0" * rng.choice((0, 0, 2))
    return _rewritten(data, values)


def extended_offset_table(data: bytes, rng: Random) -> bytes:
    """Extended offsets or lengths that are others."""
    tables = [element for element in elements(data) if element.tag in _EXTENDED_TABLES]
    if not tables:
        return data
    table = rng.choice(tables)
    at = table.value + 8 * rng.randrange(max(1, table.length // 8))
    number = rng.choice((0, 1, 8, 1000, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1))
    return data[:at] + struct.pack("<Q", number) + data[at + 8 :]


def unended_fragments(data: bytes, rng: Random) -> bytes:
    """No delimiter after the last fragment, or one within."""
    found = fragments(data)
    if not found:
        return data
    delimiter = struct.pack("<HHL", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)
    end, within = found[-1].end(len(data)), rng.choice(found)
    return rng.choice((data[:end], data[: within.value] + delimiter + data[within.value :]))


def _values(data: bytes) -> list[bytes]:
    return [data[element.value : element.end(len(data))] for element in fragments(data)]


def _one(values: list[bytes], rng: Random) -> int | None:
    """A fragment that is not the offset table."""
    return rng.randrange(1, len(values)) if len(values) > 1 else None


def _rewritten(data: bytes, values: list[bytes]) -> bytes:
    found = fragments(data)
    items = (struct.pack("<HHL", ITEM >> 16, ITEM & 0xFFFF, len(value)) + value for value in values)
    return data[: found[0].start] + b"".join(items) + data[found[-1].end(len(data)) :]


ALL: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        cut_fragment, shorten_fragment, join_fragments, repeat_fragment, lose_fragment, swap_fragments, odd_fragments,
        offset_table, extended_offset_table, unended_fragments,
    )
}  # fmt: skip
