"""What a decoding worker of `prepare` does with images. Imports the core alone, so that workers start quickly.

Location ─read─► bytes ─read_planes─► planes, digests
└─read_header─► coded terms, descriptions, patient
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.errors import DeepmcatError, ImageError
from deepmcat_core.header import Header, read_header
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_trainer.locations import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An image as the dataset takes it.

    planes: (F, size, size) uint8. digests: SHA-256 of each plane. frame_indices: which frames they are, 0-based.
    header: holds patient data; it goes no further than the journal.
    """

    planes: npt.NDArray[np.uint8]
    digests: tuple[bytes, ...]
    frame_indices: tuple[int, ...]
    flags: tuple[str, ...]
    decoder: str
    header: Header


def read_images(locations: Sequence[Location], options: ReadOptions) -> list[Reading | str]:
    """Read and decode images; for those that fail, the reason code. No text of a decoder leaves the worker."""
    return [_read_image(location, options) for location in locations]


def _read_image(location: Location, options: ReadOptions) -> Reading | str:
    try:
        data = location.read(options.limits.max_bytes)
        return _reading(read_planes(data, options), read_header(data, options.limits))
    except ImageError as error:
        return error.reason
    except Exception:  # noqa: BLE001 - one image that finds a bug of ours must not end a run over a million
        return DeepmcatError.reason


def _reading(planes: Planes, header: Header) -> Reading:
    return Reading(
        planes=planes.planes,
        digests=tuple(hashlib.sha256(plane.tobytes()).digest() for plane in planes.planes),
        frame_indices=planes.frame_indices,
        flags=tuple(sorted(planes.flags)),
        decoder=planes.decoder,
        header=header,
    )
