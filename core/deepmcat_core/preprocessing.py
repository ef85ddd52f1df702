"""From a frame to the encoder's input: the one implementation that trainer, library and server share.

The method is versioned and recorded in the artifact. The encoder takes uint8 and normalises inside (encoder.py), so
that what travels between processes and over the bus is a quarter of the size, and the normalisation is stated once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from deepmcat_core.errors import ArtifactFormat
from deepmcat_core.frame import Box, FloatPlane, Frame, Intensity
from deepmcat_core.intensity import stretch

VERSION = 2
MIN_SIZE, MAX_SIZE = 16, 1024

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a frame becomes the encoder's input: scaled to fit a square of `size`, centred, padded with black.

    version: of this method; another version gives other pixels. size: side of the square in pixels.
    intensity: how decoding makes grey of monochrome values, recorded here because it decides the pixels too.
    """

    version: int = VERSION
    size: int = 128
    intensity: Intensity = field(default_factory=Intensity)

    def __post_init__(self) -> None:
        """Refuse versions and sizes that this release does not know."""
        if self.version != VERSION:
            raise ArtifactFormat(
                f"preprocessing version is {self.version}; this release knows {VERSION}: prepare and train again"
            )
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ArtifactFormat(f"preprocessing size is {self.size}; {MIN_SIZE} to {MAX_SIZE} is allowed")

    def apply(self, frame: Frame) -> Plane:
        """The frame as (size, size) uint8.

        One resampling step from the stored grid: Pillow's bilinear filter widened by the scale, so that shrinking
        averages over all pixels (antialiasing). The pixel aspect is part of the same step. Deep numbers are stretched
        after it: noise is gone by then, whether this filter or a codec's has averaged it away, so the percentiles do
        not depend on how the image is compressed.
        """
        left, top, right, bottom = frame.box or (0, 0, *reversed(frame.pixels.shape))
        width, physical_height = right - left, (bottom - top) * frame.pixel_aspect  # in units of a pixel's width
        scale = self.size / max(physical_height, width)
        new_height = min(self.size, max(1, round(physical_height * scale)))
        new_width = min(self.size, max(1, round(width * scale)))
        values, cover = _resampled(frame, new_width, new_height)
        if frame.deep:
            # Enlarging fills in numbers between those that there are, and so says nothing about their range.
            coarse = min(new_width, math.ceil(width)), min(new_height, math.ceil(bottom - top))
            seen = (values, cover) if coarse == (new_width, new_height) else _resampled(frame, *coarse)
            values = stretch(values, _known(*seen), self.intensity, inverted=frame.inverted)
        if cover is not None:
            values *= cover
        if frame.painted is not None:
            values = values + _resized(frame.painted, new_width, new_height, frame.box)
        plane = np.zeros((self.size, self.size), dtype=np.uint8)
        row, column = (self.size - new_height) // 2, (self.size - new_width) // 2
        plane[row : row + new_height, column : column + new_width] = np.rint(np.clip(values, 0, 1) * 255)
        return plane

    def to_json(self) -> dict[str, Any]:
        """The content of the manifest's `preprocessing`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """The preprocessing of a manifest. Raises ArtifactFormat."""
        try:
            return cls(version=int(data["version"]), size=int(data["size"]), intensity=Intensity(**data["intensity"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactFormat("the manifest's preprocessing is not one that this release knows") from error


def _resampled(frame: Frame, width: int, height: int) -> tuple[FloatPlane, FloatPlane | None]:
    """(height, width) means of the pixels that are known, and which part of them is; None where all are.

    What is unknown is 0 and weighs nothing, so that padding gets neither into a mean nor into the range of means.
    """
    values = _resized(frame.pixels, width, height, frame.box)
    if frame.known is None:
        return values, None
    cover = _resized(frame.known, width, height, frame.box)
    return np.divide(values, cover, out=np.zeros_like(values), where=cover > 0), cover


def _known(values: FloatPlane, cover: FloatPlane | None) -> FloatPlane:
    """(N,) the means of which anything is known."""
    known: FloatPlane = values.ravel() if cover is None else values[cover > 0]
    return known


def _resized(pixels: npt.NDArray[Any], width: int, height: int, box: Box | None) -> npt.NDArray[Any]:
    if box is None and pixels.shape == (height, width):
        return pixels
    image = PillowImage.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(image.resize((width, height), PillowImage.Resampling.BILINEAR, box=box), dtype=np.float32)
