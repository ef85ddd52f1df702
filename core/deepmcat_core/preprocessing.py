"""From a frame to the encoder's input: the one implementation that trainer, library and server share.

The method is versioned and recorded in the artifact. The encoder takes uint8 and normalises inside (encoder.py), so
that what travels between processes and over the bus is a quarter of the size, and the normalisation is stated once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from deepmcat_core.errors import ArtifactFormat
from deepmcat_core.frame import Frame, Intensity

VERSION = 1
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
            raise ArtifactFormat(f"preprocessing version is {self.version}; this release knows version {VERSION}")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ArtifactFormat(f"preprocessing size is {self.size}; {MIN_SIZE} to {MAX_SIZE} is allowed")

    def apply(self, frame: Frame) -> Plane:
        """The frame as (size, size) uint8.

        One resampling step from the stored grid: Pillow's bilinear filter widened by the scale, so that shrinking
        averages over all pixels (antialiasing). The pixel aspect is part of the same step.
        """
        left, top, right, bottom = frame.box or (0, 0, *reversed(frame.pixels.shape))
        width, physical_height = right - left, (bottom - top) * frame.pixel_aspect  # in units of a pixel's width
        scale = self.size / max(physical_height, width)
        new_height = min(self.size, max(1, round(physical_height * scale)))
        new_width = min(self.size, max(1, round(width * scale)))
        grey = PillowImage.fromarray(np.ascontiguousarray(frame.pixels, dtype=np.float32))
        fitted = grey.resize((new_width, new_height), PillowImage.Resampling.BILINEAR, box=frame.box)
        plane = np.zeros((self.size, self.size), dtype=np.uint8)
        row, column = (self.size - new_height) // 2, (self.size - new_width) // 2
        values = np.asarray(fitted, dtype=np.float32)
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
