"""Stored values where header and pixels are at odds, or are not where most are: sign, single bits, boxes."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from jpeg_ls import encode_pixel_data as encode_charls
from openjpeg.utils import encode_array as encode_openjpeg
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from deepmcat_core.codestream import read_codestream
from deepmcat_core.dicom_file import read_dicom_file
from deepmcat_core.errors import CorruptImage, UnsupportedImage
from deepmcat_core.frame import Limits
from deepmcat_core.lookup_table import LookupTable
from deepmcat_core.pixel_data import pixel_layout, stored_frames
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing

HALVES = np.kron(np.array([[-2048, -5], [-1, 2047]], dtype=np.int16), np.ones((32, 32), dtype=np.int16))
AS_BITS = (HALVES & 0xFFF).astype(np.uint16)
SMALL = ReadOptions(preprocessing=Preprocessing(size=16))


def stored(data: bytes, *indices: int) -> list[np.ndarray]:
    """The stored values of some frames of a DICOM file."""
    file = read_dicom_file(data, Limits())
    layout = pixel_layout(file.dataset, Limits())
    return [f.values for f in stored_frames(file.dataset, file.transfer_syntax, layout, indices or (0,), Limits())]


def boxed(codestream: bytes, *, boxes: bytes = b"") -> bytes:
    """A JP2 file around a codestream (ISO/IEC 15444-1 I.5)."""
    signature = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    height, width = read_codestream(codestream).size[:2]
    image_header = b"\0\0\0\x16ihdr" + height.to_bytes(4, "big") + width.to_bytes(4, "big") + b"\0\x01\x0b\x07\0\0"
    colour = b"\0\0\0\x0fcolr\x01\0\0" + (17).to_bytes(4, "big")
    header = image_header + colour + boxes
    length = (8 + len(codestream)).to_bytes(4, "big")
    return signature + (8 + len(header)).to_bytes(4, "big") + b"jp2h" + header + length + b"jp2c" + codestream


def dicom(make_dicom, values: np.ndarray, encoded: bytes, syntax: str, *, signed: bool, bits: int = 12) -> bytes:
    """A file of a frame, under a header that says it is signed or not."""
    said = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
    return make_dicom(values, encoded=[encoded], syntax=syntax, **said)


@pytest.mark.parametrize("header_signed", [False, True])
def test_the_sign_of_a_jpeg_2000_codestream_wins(header_signed, make_dicom):
    """PS3.5 8.2.4: what it says is what it is decoded by, and a header that says otherwise is wrong."""
    encoded = bytes(encode_openjpeg(HALVES, bits_stored=12))

    found = stored(dicom(make_dicom, HALVES, encoded, JPEG2000Lossless, signed=header_signed))[0]

    np.testing.assert_array_equal(found, HALVES)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless])
def test_signed_values_in_an_unsigned_codestream_are_signed(syntax, make_dicom):
    """Encoders wrote two's complement for years; the header alone knows."""
    if syntax == JPEG2000Lossless:
        bits, encoded = 12, bytes(encode_openjpeg(AS_BITS, bits_stored=12))
    else:
        bits, encoded = 16, imagecodecs.htj2k_encode(HALVES.view(np.uint16))

    found = stored(dicom(make_dicom, HALVES, encoded, syntax, signed=True, bits=bits))[0]

    np.testing.assert_array_equal(found, HALVES)


@pytest.mark.parametrize(("syntax", "near"), [(JPEGLSLossless, 0), (JPEGLSNearLossless, 2)])
@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_ls_has_the_sign_of_the_header(syntax, near, bits, make_dicom):
    """It has none itself: as many bits as the codestream says are two's complement, whatever the header stores."""
    encoded = encode_charls(
        AS_BITS.tobytes(), lossy_error=near, rows=64, columns=64, samples_per_pixel=1, bits_allocated=16,
        bits_stored=12, photometric_interpretation="MONOCHROME2", pixel_representation=0, planar_configuration=0,
    )  # fmt: skip
    inner = np.s_[:, :32]  # at the ends of the range, an error wraps around, in the encoder already

    found = stored(dicom(make_dicom, HALVES, bytes(encoded), syntax, signed=True, bits=bits))[0]

    assert np.abs(found.astype(int) - HALVES)[inner].max() <= near


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("shape", [(3, 3), (3, 7), (5, 5), (8, 9), (1, 1)])
def test_frames_of_single_bits_are_packed_without_gaps(shape, syntax, make_dicom):
    """PS3.5 8.1.1: where a frame is no whole number of bytes, the next begins within one."""
    frames = np.random.default_rng(5).integers(0, 2, (9, *shape), dtype=np.uint8)
    packed = np.packbits(frames.ravel(), bitorder="little").tobytes()
    packed += bytes(len(packed) % 2)
    if syntax == ExplicitVRBigEndian:  # words of 16 bits
        packed = np.frombuffer(packed, dtype="<u2").astype(">u2").tobytes()
    data = make_dicom(
        frames, frames=9, syntax=syntax, BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0,
        PixelData=packed,
    )  # fmt: skip
    data = data.replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW")

    for index in range(9):
        np.testing.assert_array_equal(stored(data, index)[0], frames[index])
    np.testing.assert_array_equal(stored(data, *range(9)), frames)


def test_single_bits_that_are_too_few_are_corrupt(make_dicom):
    """As for any other pixels."""
    data = make_dicom(
        np.zeros((9, 3, 7), dtype=np.uint8), frames=9, BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0,
        PixelData=bytes(22),
    )  # fmt: skip

    with pytest.raises(CorruptImage, match="fewer pixels"):
        stored(data, 0)


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_422", "YBR_PARTIAL_420"])
def test_retired_chroma_of_few_pixels_is_unsupported(photometric, make_dicom):
    """Retired, and never damage."""
    data = make_dicom(np.zeros((2, 4, 3), dtype=np.uint8), PhotometricInterpretation=photometric, PixelData=bytes(16))

    with pytest.raises(UnsupportedImage, match="retired"):
        stored(data)


def test_a_codestream_in_a_jp2_file_is_decoded_at_a_part_of_its_size(make_dicom):
    """The boxes around it are wrong in DICOM and change nothing."""
    values = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint16)
    plain = bytes(encode_openjpeg(values, bits_stored=12))

    read = [
        read_planes(dicom(make_dicom, values, encoded, JPEG2000Lossless, signed=False), SMALL)
        for encoded in (plain, boxed(plain))
    ]

    assert read[0].decoder == read[1].decoder
    assert read[1].decoder.endswith("at 1/8")
    np.testing.assert_array_equal(read[0].planes, read[1].planes)


def test_a_palette_in_a_jp2_file_is_not_averaged(make_dicom):
    """Means of its indices are nothing."""
    encoded = bytes(encode_openjpeg(np.zeros((64, 64), dtype=np.uint8), bits_stored=8))

    assert read_codestream(boxed(encoded)).halvings > 0
    assert read_codestream(boxed(encoded, boxes=b"\0\0\0\x0cpclr\0\0\0\0")).halvings == 0


@pytest.mark.parametrize(
    ("dtype", "first", "expected"),
    [
        ("u1", 65526, [10, 11, 265]),  # -10, written without a sign: 65526 is beyond every byte
        ("u1", -10, [10, 11, 265]),
        ("u1", 5, [0, 0, 250]),
        ("i1", -1000, [999, 999, 999]),
        ("i1", 32000, [0, 0, 0]),
        ("u2", 65526, [0, 0, 0]),  # that is a word
        ("i2", -10, [10, 11, 265]),
        ("u4", 4, [0, 0, 251]),
        ("u8", 4, [0, 0, 251]),
    ],
)
def test_a_lookup_table_may_begin_where_no_pixel_is(dtype, first, expected):
    """PS3.3 C.11.1.1: values outside take its first or last entry, whatever type they have."""
    table = LookupTable(entries=np.arange(1000, dtype=np.float32), first=first, top=999)
    values = np.array([0, 1, min(255, np.iinfo(dtype).max)], dtype=dtype)

    np.testing.assert_array_equal(table.apply(values), expected)
