"""Decoding at a part of the size: what a JPEG or JPEG 2000 frame looks like from afar, without decoding the rest of it.

The encoder takes some 128 to 256 pixels a side, and an X-ray has 2,000 and more. JPEG 2000 stores an image as a small
one and what to add to double it, again and again; JPEG stores blocks of 8 by 8 as their mean and what varies in them.
Pillow (OpenJPEG, libjpeg-turbo) stops at a half, a quarter, an eighth. What remains has at least some pixels for each
that is wanted, so that the resampling that follows decides what the picture looks like, and not the codec's own filter.

Only where grey is a straight line over stored values: means of palette indices or of padding are nothing. And only
where the codec's filter does not show: either filter averages away what is finer than a pixel, such as noise, but what
they leave of it differs, and a stretch enlarges that as much as the picture is faint. Such a one is decoded in full.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image as PillowImage
from PIL import ImageFile

from deepmcat_core.codestream import Codestream
from deepmcat_core.frame import Box
from deepmcat_core.intensity import percentiles

# Pixels that remain for each that is wanted, a side. Every halving makes JPEG 2000 four times as fast, and JPEG, which
# has to read all of its code, hardly.
MARGIN_JPEG_2000, MARGIN_JPEG = 2, 4

# Which part of the range that becomes grey may be as fine as the remaining pixels, their rounding to whole numbers
# included. About a tenth of it is what filters differ by.
MAX_FINE = 10 / 255
_ROWS = 128  # that are looked at for it, or up to twice as many


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a frame is decoded for.

    pixels_each: see `pixels_each`. percents: the percentiles of monochrome values that become black and white.
    """

    pixels_each: float
    percents: tuple[float, float] = (0.0, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """values: (h, w) as stored, or (h, w, 1), the luminance of colours. box: where the picture lies in them."""

    values: npt.NDArray[Any]
    box: Box
    decoder: str


def pixels_each(rows: int, columns: int, pixel_aspect: float, side: int) -> float:
    """How many pixels there are for each of a square of `side`, in the direction that has fewer."""
    tallest = max(rows * pixel_aspect, columns)  # in units of a pixel's width
    return tallest / side * min(1, 1 / pixel_aspect)


def halvings(codestream: Codestream, pixels_each: float) -> int:
    """How often the sides are halved: as often as codec and margin allow."""
    margin = MARGIN_JPEG_2000 if codestream.is_wavelet else MARGIN_JPEG
    return min(codestream.halvings, max(0, math.floor(math.log2(pixels_each / margin))))


def decoder(times: int) -> str:
    """What decodes at a part of the size, as "name version at 1/8"."""
    return f"pillow {PIL.__version__}" + (f" at 1/{2**times}" if times else "")


def shrunk(frame: bytes, codestream: Codestream, wanted: Wanted, *, is_rgb: bool) -> Shrunk | None:
    """A frame at a part of its size; None where it has to be all of it.

    is_rgb: what three components are, RGB or luminance and chroma. May raise what Pillow raises.
    """
    times = halvings(codestream, wanted.pixels_each)
    if times < 1 or codestream.bits > 16 or (codestream.components == 3 and codestream.bits != 8):
        return None
    found = (_jpeg_2000 if codestream.is_wavelet else _jpeg)(frame, codestream, times, is_rgb=is_rgb)
    luminance = found.values.ndim == 3  # grey already
    part = fine(found.values[..., 0], None) if luminance else fine(found.values, wanted.percents)
    return found if part <= MAX_FINE else None


def fine(values: npt.NDArray[Any], percents: tuple[float, float] | None) -> float:
    """How much of the range of (h, w) values is as fine as a pixel: their mean distance from their neighbours' mean.

    percents: the percentiles between which the range is, taken at half the size, where what is fine does not widen it;
    None: it is all of eight bits.
    """
    rows, columns = values.shape
    if min(rows, columns) < 4:
        return math.inf  # too thin to say
    step = max(1, rows // _ROWS)
    middle = values[1:-1:step].astype(np.float32)
    above, below = values[:-2:step].astype(np.float32), values[2::step].astype(np.float32)
    neighbours = above[:, 1:-1] + below[:, 1:-1] + middle[:, :-2] + middle[:, 2:]
    grain = float(np.abs(middle[:, 1:-1] - neighbours / 4).mean())
    if percents is None:
        return (grain + 1) / 255
    pairs = above + middle
    even = columns // 2 * 2
    low, high = percentiles(((pairs[:, 0:even:2] + pairs[:, 1:even:2]) / 4).ravel(), percents)
    return (grain + 1) / (high - low) if high > low else math.inf


def _jpeg(frame: bytes, codestream: Codestream, times: int, *, is_rgb: bool) -> Shrunk:
    """Means of blocks (of those at the edge with what the encoder filled them up with)."""
    size = _size(codestream, times)
    stored = "L" if codestream.components == 1 else "RGB" if is_rgb else "YCbCr"
    values = np.asarray(PillowImage.frombytes("L", size, frame, "jpeg", "L", stored, 2**times, 0))
    box = (0.0, 0.0, codestream.columns / 2**times, codestream.rows / 2**times)
    return Shrunk(values=values[..., None] if codestream.components == 3 else values, box=box, decoder=decoder(times))


def _jpeg_2000(frame: bytes, codestream: Codestream, times: int, *, is_rgb: bool) -> Shrunk:
    """Low-pass samples of the wavelet transform: each stands for the pixels around the first of 2**times."""
    image = _Jpeg2000(frame, codestream, times)
    if codestream.components == 3:
        values = np.asarray(image.convert("L"))[..., None] if is_rgb else np.asarray(image)[..., :1]
    else:
        values = _unscaled(np.asarray(image), codestream)
    before = (1 - 0.5**times) / 2  # the first sample is centred on the first pixel, and reaches out of the picture
    box = (before, before, before + codestream.columns / 2**times, before + codestream.rows / 2**times)
    padded = np.pad(values, ((0, 1), (0, 1), (0, 0))[: values.ndim], mode="edge")
    return Shrunk(values=padded, box=box, decoder=decoder(times))


def _unscaled(values: npt.NDArray[Any], codestream: Codestream) -> npt.NDArray[Any]:
    """Stored values: Pillow moves them to the top of its 8 or 16 bits, and signed ones up by half of their range."""
    stored = values >> (8 * values.dtype.itemsize - codestream.bits)
    if not codestream.signed:
        return stored
    signed = stored.astype(f"i{values.dtype.itemsize * 2}") - (1 << (codestream.bits - 1))
    return signed.astype(f"i{values.dtype.itemsize}")


def _size(codestream: Codestream, times: int) -> tuple[int, int]:
    """Width and height; both codecs round up."""
    return -(-codestream.columns >> times), -(-codestream.rows >> times)


class _Jpeg2000(ImageFile.ImageFile):
    """A JPEG 2000 codestream as Pillow reads it at a part of its size.

    Pillow's own class rounds odd sizes to the nearest, which is one pixel too few, and then cannot decode.
    """

    def __init__(self, frame: bytes, codestream: Codestream, times: int) -> None:
        self._stored = codestream
        self._times = times
        self._length = len(frame)
        super().__init__(io.BytesIO(frame))

    def _open(self) -> None:
        self._size = _size(self._stored, self._times)
        self._mode = "RGB" if self._stored.components == 3 else "L" if self._stored.bits <= 8 else "I;16"
        options = ("j2k", self._times, 0, -1, self._length)  # all quality layers, no file descriptor
        self.tile = [ImageFile._Tile("jpeg2k", (0, 0, *self._size), 0, options)]
