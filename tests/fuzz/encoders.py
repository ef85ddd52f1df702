"""A frame in every compressed transfer syntax that is read: what a damaged one is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

Pixels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Encoder:
    """bits: stored ones that the syntax takes. signed: whether it takes signed samples.

    encode: from (H, W) or (H, W, 3) and its bits.
    """

    bits: tuple[int, ...]
    signed: bool
    encode: Callable[[Pixels, int], bytes]


def _rle(pixels: Pixels, bits: int) -> bytes:
    colour = pixels.ndim == 3
    return bytes(
        RLELosslessEncoder.encode(
            np.ascontiguousarray(pixels),
            encoding_plugin="pydicom",
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=3 if colour else 1,
            number_of_frames=1,
            bits_allocated=8 * pixels.dtype.itemsize,
            bits_stored=bits,
            pixel_representation=int(pixels.dtype.kind == "i"),
            photometric_interpretation="RGB" if colour else "MONOCHROME2",
            planar_configuration=0,
        )
    )


def _jpeg(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=bits))


def _jpeg_lossless(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=bits))


def _jpeg_ls(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels, level=0))


def _jpeg_ls_near(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels, level=2))


def _jpeg_2000(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", reversible=True, bitspersample=bits))


def _jpeg_2000_lossy(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", level=40, bitspersample=bits))


def _htj2k(pixels: Pixels, bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels))


ENCODERS: dict[UID, Encoder] = {
    RLELossless: Encoder((8, 12, 16), True, _rle),
    JPEGBaseline8Bit: Encoder((8,), False, _jpeg),
    JPEGExtended12Bit: Encoder((12,), False, _jpeg),
    JPEGLossless: Encoder((8, 12, 16), False, _jpeg_lossless),
    JPEGLosslessSV1: Encoder((8, 12, 16), False, _jpeg_lossless),
    JPEGLSLossless: Encoder((8, 12, 16), False, _jpeg_ls),
    JPEGLSNearLossless: Encoder((8, 12, 16), False, _jpeg_ls_near),
    JPEG2000Lossless: Encoder((8, 12, 16), True, _jpeg_2000),
    JPEG2000: Encoder((8, 12, 16), True, _jpeg_2000_lossy),
    HTJ2KLossless: Encoder((8, 12, 16), True, _htj2k),
    HTJ2KLosslessRPCL: Encoder((8, 12, 16), True, _htj2k),
    HTJ2K: Encoder((8, 12, 16), True, _htj2k),
}
