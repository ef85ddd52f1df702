"""PNG, JPEG and TIFF, read with Pillow.

Eight-bit images are grey already and stay as they are; deeper ones are stretched like DICOM's. EXIF is ignored, so that
the pixels depend on the pixels alone.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import PIL
from PIL import Image as PillowImage

from deepmcat_core import shrinking
from deepmcat_core.codestream import read_codestream
from deepmcat_core.errors import CorruptImage, ImageTooLarge
from deepmcat_core.frame import Box, FloatPlane, Frame, FramePolicy, Image, Intensity, Limits
from deepmcat_core.intensity import deep_frame, luminance

MAX_PAGES = 10_000  # of a TIFF: counting them means walking a chain that the file's author has laid
_PHOTOMETRIC_INTERPRETATION = 262  # the TIFF tag; 0 is "white is zero"


def decode_plane_format(
    data: bytes, name: str, *, intensity: Intensity, frames: FramePolicy, limits: Limits, side: int | None = None
) -> Image:
    """The frames of a png, jpeg or tiff: one, or the policy's choice of a TIFF's pages. Raises ImageError.

    side: see `decode`. May raise what Pillow raises; `decode` translates that.
    """
    times = _halvings(data, side) if name == "jpeg" and side else 0
    try:
        with PillowImage.open(io.BytesIO(data), formats=(name.upper(),)) as image:
            total = _count_pages(image) if name == "tiff" else 1
            indices = frames.indices(total)
            limits.check_frames(len(indices))
            _check_sizes(image, indices, limits)
            box = _shrink(image, times)
            chosen = tuple(_frame(image, index, intensity, box) for index in indices)
    except PillowImage.DecompressionBombError as error:
        raise ImageTooLarge(f"the {name} image has more pixels than Pillow is willing to decode") from error
    except PIL.UnidentifiedImageError as error:
        raise CorruptImage(f"the {name} image is damaged, or of a layout that is not read") from error
    return Image(frames=chosen, total_frames=total, format=name, decoder=shrinking.decoder(times))


def _halvings(data: bytes, side: int) -> int:
    """How often the sides of a JPEG may be halved in decoding."""
    stated = read_codestream(data)
    return shrinking.halvings(stated, shrinking.pixels_each(stated.rows, stated.columns, 1, side)) if stated else 0


def _shrink(image: PillowImage.Image, times: int) -> Box | None:
    """Have a JPEG decoded with its sides halved so many times, and YCbCr as its Y; where the picture then lies."""
    width, height = image.size
    drafted = image.draft("L", (width >> times, height >> times)) if times else None
    return drafted[1] if drafted else None


def _count_pages(image: PillowImage.Image) -> int:
    for index in range(MAX_PAGES + 1):
        try:
            image.seek(index)
        except EOFError:
            return index
    raise ImageTooLarge(f"the TIFF has more than {MAX_PAGES} pages")


def _check_sizes(image: PillowImage.Image, indices: tuple[int, ...], limits: Limits) -> None:
    decoded = 0
    for index in indices:
        _turn_to(image, index)
        width, height = image.size
        limits.check_plane(height, width)
        decoded += height * width * 4  # Pillow has four bytes a pixel in every mode but the grey ones
    limits.check_decoded_bytes(decoded)


def _frame(image: PillowImage.Image, index: int, intensity: Intensity, box: Box | None) -> Frame:
    _turn_to(image, index)
    if image.mode.startswith(("I", "F")):
        return replace(_deep(image, intensity), index=index)
    return Frame(pixels=_grey(image), index=index, box=box)


def _turn_to(image: PillowImage.Image, index: int) -> None:
    if image.tell() != index:
        image.seek(index)


def _grey(image: PillowImage.Image) -> FloatPlane:
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    return luminance(np.asarray(image.convert("RGB")), white=255)


def _deep(image: PillowImage.Image, intensity: Intensity) -> Frame:
    values = np.asarray(image)
    # Pillow inverts eight-bit "white is zero" itself, and deeper ones not.
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_INTERPRETATION) == 0
    return deep_frame(values, intensity, inverted=inverted, wide=values.dtype.itemsize > 2)
