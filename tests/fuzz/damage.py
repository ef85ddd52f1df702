"""Every damage that can be done to a file, by name; a name and a seed say which damage exactly."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from random import Random

from . import damage_bytes, damage_codestreams, damage_elements, damage_fragments, damage_planes
from .damage_bytes import Damage
from .elements import data_set_start

Step = tuple[str, int]
"""The name of a damage and its seed."""


def inside_deflated(data: bytes, rng: Random) -> bytes:
    """Damage to an element of what is deflated, in place of damage to the stream."""
    start = data_set_start(data)
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], 2**20)
    except zlib.error:
        return data
    # An explicit data set on its own is found by its first element, as a bare one is.
    damaged = rng.choice(list(damage_elements.ALL.values()))(inflated, rng)
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return data[:start] + stream.compress(damaged) + stream.flush()


BYTES: dict[str, Damage] = damage_bytes.ALL
DICOM: dict[str, Damage] = {
    **damage_elements.ALL,
    **damage_fragments.ALL,
    **damage_codestreams.ALL,
    "inside_deflated": inside_deflated,
}
PLANES: dict[str, Damage] = {**damage_planes.ALL, **damage_codestreams.ALL}
ALL: dict[str, Damage] = {**BYTES, **DICOM, **PLANES}


def damaged(data: bytes, steps: Iterable[Step]) -> bytes:
    """A file after steps of damage, as long as anything is left of it."""
    for name, seed in steps:
        if data:
            data = ALL[name](data, Random(seed))
    return data
