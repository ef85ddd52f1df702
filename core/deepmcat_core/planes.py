"""From bytes to the encoder's input, in one call: what runs in a decoding worker.

    bytes ──decoding──► Image of Frames ──preprocessing──► (F, size, size) uint8

`prepare`, the library and the server all call `read_planes`, so that an image has the same pixels everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deepmcat_core.decoding import decode
from deepmcat_core.frame import FramePolicy, ImageFlag, ImageSource, Limits
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_core.translation import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How to read an image. Small and picklable: it travels to the decoding workers."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    frames: FramePolicy = field(default_factory=FramePolicy)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """An image as the encoder takes it.

    planes: (F, size, size) uint8. frame_indices: which frames they are, 0-based.
    """

    planes: npt.NDArray[np.uint8]
    frame_indices: tuple[int, ...]
    total_frames: int
    format: str
    decoder: str
    flags: frozenset[ImageFlag]


def read_planes(source: ImageSource, options: ReadOptions) -> Planes:
    """Decode and preprocess one image. Raises ImageError and nothing else."""
    preprocessing = options.preprocessing
    image = decode(
        source,
        intensity=preprocessing.intensity,
        frames=options.frames,
        limits=options.limits,
        side=preprocessing.size,
    )
    with translated():  # for want of memory
        planes = np.stack([preprocessing.apply(frame) for frame in image.frames])  # (F, size, size)
    return Planes(
        planes=planes,
        frame_indices=tuple(frame.index for frame in image.frames),
        total_frames=image.total_frames,
        format=image.format,
        decoder=image.decoder,
        flags=image.flags,
    )
