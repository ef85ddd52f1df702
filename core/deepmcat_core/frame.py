"""What decoding makes of an image: frames of grey values, and what is worth knowing about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from deepmcat_core.errors import ConfigError, CorruptImage, ImageTooLarge

FloatPlane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels


class ImageFlag(StrEnum):
    """Something worth knowing about an image that does not change its assignment. Names match the wire's."""

    DERIVED = "DERIVED"
    LOCALIZER = "LOCALIZER"
    BURNED_IN_TEXT_POSSIBLE = "BURNED_IN_TEXT_POSSIBLE"
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE"
    OVERLAYS_IGNORED = "OVERLAYS_IGNORED"
    TRANSFER_SYNTAX_GUESSED = "TRANSFER_SYNTAX_GUESSED"
    PREAMBLE_EXECUTABLE = "PREAMBLE_EXECUTABLE"


IntensityMode = Literal["percentile", "window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """How monochrome values of more than display range become grey.

    `percentile` stretches between two percentiles of the values that are not padding, at the size that is wanted:
    robust, and the same for images with and without a window. `window` uses the image's own VOI LUT or window where it
    has one (PS3.3 C.11.2) and falls back to the percentiles. Eight-bit PNG, JPEG and TIFF, images of one bit and
    colour images are grey already.
    Raises ValueError for another mode, and for percentiles that are none or leave nothing between them.
    """

    mode: IntensityMode = "percentile"
    low: float = 1.0
    high: float = 99.0

    def __post_init__(self) -> None:
        """Refuse what no image could be stretched by."""
        modes = get_args(IntensityMode)
        if self.mode not in modes:
            raise ValueError(f"intensity mode is {self.mode!r}; {' and '.join(modes)} are modes")
        numbers = _is_number(self.low, Real) and _is_number(self.high, Real)
        if not (numbers and 0 <= self.low < self.high <= 100):
            raise ValueError(
                f"intensity percentiles are {self.low!r} and {self.high!r}; two numbers are allowed, "
                "0 or more and 100 or less, the low one below the high one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePolicy:
    """Which frames of a multi-frame image are used: up to `count`, evenly spaced.

    Raises ConfigError for fewer than one, which a caller may ask for, and ValueError for what is no whole number.
    """

    count: int = 3

    def __post_init__(self) -> None:
        """Refuse a policy that uses no frame."""
        if not _is_number(self.count, Integral):
            raise ValueError(f"a frame policy uses {self.count!r} frames; a whole number is allowed, 1 or more")
        if self.count < 1:
            raise ConfigError(f"a frame policy uses {self.count} frames; 1 or more are allowed")

    def indices(self, total: int) -> tuple[int, ...]:
        """The 0-based frames to use of `total`: the middles of `count` equal parts, so one frame is the middle one."""
        count = min(self.count, total)
        return tuple((2 * i + 1) * total // (2 * count) for i in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that are checked before work is done. Over one: `ImageTooLarge`."""

    max_bytes: int = 512 * 2**20  # of the file, or of the raw plane
    max_inflated_bytes: int = 1024 * 2**20  # of Deflated Explicit VR Little Endian
    max_inflation: int = 250  # how many times its size a deflated object may have, once it has more than 64 MiB
    max_side: int = 32768  # rows or columns
    max_decoded_bytes: int = 1024 * 2**20  # of the frames used, as stored values
    max_frames: int = 64  # frames used, not frames present
    max_depth: int = 32  # DICOM sequences within sequences
    max_elements: int = 250_000  # DICOM elements, those in sequences counted

    def check_plane(self, rows: int, columns: int) -> None:
        """Refuse a plane without pixels (CorruptImage) or over the side (ImageTooLarge)."""
        if min(rows, columns) < 1:
            raise CorruptImage(f"the image has {rows} rows and {columns} columns; both are 1 or more in an image")
        if max(rows, columns) > self.max_side:
            raise ImageTooLarge(f"the image has {rows} rows and {columns} columns; up to {self.max_side} are allowed")

    def check_frames(self, used: int) -> None:
        """Refuse to use more frames than allowed (ImageTooLarge)."""
        if used > self.max_frames:
            raise ImageTooLarge(f"{used} frames are asked for; up to {self.max_frames} are allowed")

    def check_elements(self, elements: int) -> None:
        """Refuse to walk over more DICOM elements than allowed (ImageTooLarge)."""
        if elements > self.max_elements:
            raise ImageTooLarge(f"the DICOM object has more than {self.max_elements} elements, which is the limit")

    def check_decoded_bytes(self, decoded: int) -> None:
        """Refuse to decode to more bytes than allowed (ImageTooLarge)."""
        if decoded > self.max_decoded_bytes:
            raise ImageTooLarge(
                f"the frames to use decode to {decoded} bytes; up to {self.max_decoded_bytes} are allowed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One decoded plane.

    pixels: (H, W) float32: grey, 0 is black and 1 is white, or, where `deep`, finite numbers of any range that
    preprocessing stretches, which may be uint8. inverted: the lowest of them is white.
    known: (H, W), which deep numbers are of the picture; others, such as padding, are 0 and become black. None: all.
    painted: (H, W) float32, grey of what is painted where nothing is known, and 0 elsewhere; None: nothing is.
    pixel_aspect: height of a pixel over its width.
    index: 0-based frame number within the image.
    box: where the picture lies in `pixels`, which may be a smaller one that reaches out of it; None where it is all.
    """

    pixels: FloatPlane | npt.NDArray[np.uint8]
    deep: bool = False
    inverted: bool = False
    known: Mask | None = None
    painted: FloatPlane | None = None
    pixel_aspect: float = 1.0
    index: int = 0
    box: Box | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A decoded image: the frames asked for, and what is known about the whole.

    format: dicom, png, jpeg, tiff or raw. decoder: "name version" of what decoded the pixels, and "at 1/8" where that
    was at a part of their size, for the record: lossy decoders differ by a grey level or three.
    """

    frames: tuple[Frame, ...]
    total_frames: int
    format: str
    decoder: str
    flags: frozenset[ImageFlag] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPlane:
    """A monochrome plane without a file around it: (rows, columns) little-endian samples.

    sample_type: uint8, uint16, int16 or float32. inverted: MONOCHROME1, the lowest value is white.
    """

    rows: int
    columns: int
    sample_type: Literal["uint8", "uint16", "int16", "float32"]
    data: bytes
    inverted: bool = False


ImageSource = bytes | RawPlane
"""What can be decoded: a whole file, or a raw plane."""


def _is_number(value: object, kind: type) -> bool:
    """Whether a value, as JSON may hold any, is a number of a kind; true and false are of none."""
    return isinstance(value, kind) and not isinstance(value, bool)
