"""The DICOM objects that decode.py measures: one synthetic picture in every syntax, around the header of a real CT."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np
import pydicom
from jpeg_ls import encode_array as encode_charls
from openjpeg.utils import encode_array as encode_openjpeg
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

CINE_FRAMES = 120

Picture = np.ndarray


class Object(NamedTuple):
    """data: a DICOM file. frame: the one that is used, or None where there is but one."""

    name: str
    data: bytes
    frame: int | None = None


def objects() -> Iterator[Object]:
    """All of them, the smaller first."""
    for side in (512, 2048):
        deep = picture(side)
        yield Object(f"uncompressed, {side}²", dicom(deep, ExplicitVRLittleEndian))
        yield Object(f"deflated, {side}²", dicom(deep, DeflatedExplicitVRLittleEndian))
        for name, syntax, encode in DEEP:
            yield Object(f"{name}, {side}²", dicom(deep, syntax, [encode(deep)]))
        byte = (deep >> 4).astype(np.uint8)
        yield Object(f"JPEG, {side}²", dicom(byte, JPEGBaseline8Bit, [imagecodecs.jpeg8_encode(byte, level=90)]))
        yield Object(f"JPEG in colour, {side}²", dicom(colours(byte), JPEGBaseline8Bit, [jpeg_in_colour(byte)]))
    yield cine()


def picture(side: int, seed: int = 0) -> Picture:
    """(side, side) uint16 of 12 bits: forty discs, and noise of half a percent of the range."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    grey = np.full((side, side), 200.0)
    for y, x, radius, brightness in rng.random((40, 4)):
        grey += 800 * brightness * (np.hypot(rows - y, columns - x) < radius / 5)
    return np.clip(grey + rng.normal(0, 20, grey.shape), 0, 4095).astype(np.uint16)


def colours(grey: Picture) -> Picture:
    """(H, W, 3) of (H, W)."""
    return np.stack([grey, grey.T, grey[::-1]], axis=-1)


def jpeg_in_colour(grey: Picture) -> bytes:
    """As YCbCr with a quarter of the chroma, as cameras and ultrasound write it."""
    return imagecodecs.jpeg8_encode(colours(grey), level=90, subsampling="420")


def cine() -> Object:
    """An ultrasound cine in colour, of which the frame in the middle is used."""
    frames = [jpeg_in_colour((picture(512, seed) >> 4).astype(np.uint8)) for seed in range(4)]
    first = colours((picture(512) >> 4).astype(np.uint8))
    data = dicom(first, JPEGBaseline8Bit, frames * (CINE_FRAMES // 4), frames=CINE_FRAMES)
    return Object(f"one frame of a JPEG cine of {CINE_FRAMES}, 512²", data, frame=CINE_FRAMES // 2)


def rle(values: Picture) -> bytes:
    """By pydicom."""
    return RLELosslessEncoder.encode(
        values,
        rows=values.shape[0],
        columns=values.shape[1],
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )


DEEP: tuple[tuple[str, str, Callable[[Picture], bytes]], ...] = (
    ("RLE", RLELossless, rle),
    ("JPEG of 12 bits", JPEGExtended12Bit, lambda p: imagecodecs.jpeg8_encode(p, level=90, bitspersample=12)),
    ("JPEG lossless", JPEGLosslessSV1, lambda p: imagecodecs.ljpeg_encode(p, bitspersample=12)),
    ("JPEG-LS", JPEGLSLossless, lambda p: bytes(encode_charls(p))),
    ("JPEG 2000 lossless", JPEG2000Lossless, lambda p: encode_openjpeg(p, 12)),
    ("JPEG 2000 lossy, 1:10", JPEG2000, lambda p: encode_openjpeg(p, 12, compression_ratios=[10.0])),
    ("HTJ2K lossless", HTJ2KLossless, imagecodecs.htj2k_encode),
)


def dicom(values: Picture, syntax: str, encoded: list[bytes] | None = None, frames: int = 0) -> bytes:
    """A file of the picture, under the header of pydicom's CT without its padding value."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    del dataset.PixelPaddingValue
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = 8 if values.dtype == np.uint8 else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    if values.ndim == 3:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    if frames:
        dataset.NumberOfFrames = frames
    dataset.PixelData = encapsulate(encoded) if encoded else values.tobytes()
    dataset["PixelData"].VR = "OB" if encoded else "OW"
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()
