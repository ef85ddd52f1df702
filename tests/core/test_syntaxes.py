"""Promises of transfer syntaxes: lossless ones are exact to the bit, lossy ones as another decoder has them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpeg_ls import encode_array as encode_charls
from openjpeg.utils import encode_array as encode_openjpeg
from PIL import Image as PillowImage
from pydicom._uid_dict import UID_dictionary
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from deepmcat_core import codecs
from deepmcat_core.decoding import decode
from deepmcat_core.dicom_file import read_dicom_file
from deepmcat_core.encapsulation import EncapsulatedFrames
from deepmcat_core.errors import CorruptImage, UnsupportedImage
from deepmcat_core.frame import FramePolicy, Intensity, Limits
from deepmcat_core.pixel_data import pixel_layout, stored_frames

Encode = Callable[[np.ndarray, int], bytes]

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def as_unsigned(values: np.ndarray, bits: int) -> np.ndarray:
    """The bits of signed values, for codecs that know no sign."""
    return (values.astype(np.int64) & (2**bits - 1)).astype(f"u{values.dtype.itemsize}")


def jpeg_lossless(predictor: int) -> Encode:
    """By libjpeg-turbo; selection value 1 is what SV1 stands for."""

    def encode(values: np.ndarray, bits: int) -> bytes:
        same = "RGB" if values.ndim == 3 else None
        return imagecodecs.jpeg8_encode(
            as_unsigned(values, bits),
            lossless=True,
            predictor=predictor,
            bitspersample=bits,
            colorspace=same,
            outcolorspace=same,
        )

    return encode


def rle(values: np.ndarray, bits: int) -> bytes:
    """By pydicom."""
    return RLELosslessEncoder.encode(
        values,
        rows=values.shape[0],
        columns=values.shape[1],
        samples_per_pixel=values.shape[2] if values.ndim == 3 else 1,
        bits_allocated=8 * values.dtype.itemsize,
        bits_stored=bits,
        pixel_representation=int(values.dtype.kind == "i"),
        photometric_interpretation="RGB" if values.ndim == 3 else "MONOCHROME2",
        planar_configuration=0,
        number_of_frames=1,
        encoding_plugin="pydicom",
    )


LOSSLESS: dict[str, Encode] = {
    RLELossless: rle,
    JPEGLossless: jpeg_lossless(4),
    JPEGLosslessSV1: jpeg_lossless(1),
    JPEGLSLossless: lambda values, bits: bytes(
        encode_charls(as_unsigned(values, bits), interleave_mode=2 if values.ndim == 3 else None)
    ),
    JPEG2000Lossless: lambda values, bits: encode_openjpeg(values, bits, 1 if values.ndim == 3 else 0),
    JPEG2000: lambda values, bits: encode_openjpeg(values, bits, 1 if values.ndim == 3 else 0),
    HTJ2KLossless: lambda values, bits: imagecodecs.htj2k_encode(values),
    HTJ2KLosslessRPCL: lambda values, bits: imagecodecs.htj2k_encode(values),
}
KINDS = {"u1": 8, "i1": 8, "u2 of 12": 12, "i2 of 12": 12, "u2": 16, "i2": 16, "rgb": 8}


def picture(kind: str, frame: int = 0) -> np.ndarray:
    """(37, 45) or, for rgb, (37, 45, 3): waves over the whole range of values, with noise and both ends in it."""
    bits, signed = KINDS[kind], kind.startswith("i")
    rng = np.random.default_rng([frame, bits])
    rows, columns = np.mgrid[0:37, 0:45]
    waves = (np.sin(rows / 5 + frame) + np.cos(columns / 7)) / 4 + 0.5 + rng.normal(0, 0.02, (37, 45))
    values = np.clip(waves, 0, 1) * (2**bits - 1)
    values[0, :2] = 0, 2**bits - 1
    if kind == "rgb":
        return np.stack([values, values[::-1], values[:, ::-1]], axis=-1).astype(np.uint8)
    return (np.rint(values) - signed * 2 ** (bits - 1)).astype(kind[:2])


def stored(data: bytes, indices: tuple[int, ...] = (0,)) -> list[np.ndarray]:
    """The stored values of some frames of a DICOM file."""
    file = read_dicom_file(data, Limits())
    layout = pixel_layout(file.dataset, Limits())
    return [f.values for f in stored_frames(file.dataset, file.transfer_syntax, layout, indices, Limits())]


def header(kind: str, syntax: str) -> dict[str, Any]:
    """What the header of a picture says beyond its array."""
    bits = KINDS[kind]
    said: dict[str, Any] = {"BitsStored": bits, "HighBit": bits - 1}
    if kind == "rgb" and syntax in (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL):
        said["PhotometricInterpretation"] = "YBR_RCT"
    return said


def test_every_syntax_that_is_read_is_tested_here():
    """A codec that is added brings its own line."""
    lossy = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K}

    assert {*NATIVE, *LOSSLESS, *lossy} - {DeflatedExplicitVRLittleEndian} == {
        *codecs.NATIVE,
        *codecs.DECODER_DEPENDENCIES,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
def test_lossless_is_exact(syntax, kind, make_dicom):
    """What was encoded comes back bit by bit, sign and unused bits included."""
    values = picture(kind)
    encoded = [LOSSLESS[syntax](values, KINDS[kind])] if syntax in LOSSLESS else None

    found = stored(make_dicom(values, syntax=syntax, encoded=encoded, **header(kind, syntax)))[0]

    assert found.dtype.newbyteorder("=") == values.dtype
    np.testing.assert_array_equal(values, found)


def test_colour_by_plane_is_exact(make_dicom):
    """Native pixels in Planar Configuration 1 come back by pixel."""
    values = picture("rgb")
    planar = np.ascontiguousarray(values.transpose(2, 0, 1)).reshape(values.shape)

    np.testing.assert_array_equal(values, stored(make_dicom(planar, PlanarConfiguration=1))[0])


NOT_READ = sorted(
    uid
    for uid, (_, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax" and uid not in {*NATIVE, *codecs.DECODER_DEPENDENCIES}
)


@pytest.mark.parametrize("syntax", NOT_READ)
def test_every_other_syntax_of_the_standard_is_unsupported(syntax, make_dicom):
    """Video, JPIP, Part 2, JPEG XL, what is retired and what is no image: said by name, before anything is decoded."""
    data = make_dicom(picture("u1"))
    at = data.index(b"\x02\x00\x10\x00UI")
    after = at + 8 + int.from_bytes(data[at + 6 : at + 8], "little")
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    other = data[: at + 6] + len(uid).to_bytes(2, "little") + uid + data[after:]

    with pytest.raises(UnsupportedImage):
        decode(other, intensity=Intensity(), frames=FramePolicy(), limits=Limits())


# --- where frames are ---

TABLES = ("none", "basic", "extended")


def encapsulated(frames: list[bytes], table: str, fragments: int) -> tuple[bytes, dict[str, bytes]]:
    """Pixel data of frames in so many fragments each, and the attributes that belong to it."""
    if table == "extended":  # which is for one fragment a frame
        data, offsets, lengths = encapsulate_extended(frames)
        return data, {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    return encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic"), {}


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("table", "fragments"), [*((table, 1) for table in TABLES), ("none", 3), ("basic", 3)])
def test_frames_are_found_by_any_table_or_none(syntax, table, fragments, make_dicom):
    """One fragment a frame or several, with a Basic or an Extended Offset Table, or the ends of codestreams alone."""
    if syntax == RLELossless and fragments > 1 and table == "none":
        pytest.skip("RLE has no mark at its end; a frame of it is one fragment (PS3.5 A.4.2)")
    frames = np.stack([picture("u2 of 12", frame) for frame in range(4)])
    data, tables = encapsulated([LOSSLESS[syntax](frame, 12) for frame in frames], table, fragments)

    found = stored(
        make_dicom(frames, frames=4, syntax=syntax, encoded=data, **header("u2 of 12", syntax), **tables), (1, 3)
    )

    np.testing.assert_array_equal(frames[[1, 3]], found)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("table", TABLES)
def test_frames_that_are_not_used_are_not_looked_at(syntax, table, make_dicom):
    """One frame of a cine is decoded where all others are rubbish."""
    frames = np.stack([picture("u1", frame) for frame in range(3)])
    encoded = [b"\xff\xd9" * 40, LOSSLESS[syntax](frames[1], 8), b"\xff\xd9" * 40]
    data, tables = encapsulated(encoded, table, 1)

    found = stored(make_dicom(frames, frames=3, syntax=syntax, encoded=data, **tables), (1,))

    np.testing.assert_array_equal(frames[1], found[0])


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.binary(min_size=12, max_size=40), min_size=1, max_size=6),
    table=st.sampled_from(TABLES),
    fragments=st.integers(1, 3),
)
def test_frames_are_where_pydicom_finds_them(frames, table, fragments):
    """With one walk over the fragments in place of one a frame."""
    frames = [
        frame.replace(b"\xff\xd9", b"--").ljust(12, b"-")[: len(frame) // 2 * 2] + b"\xff\xd9" for frame in frames
    ]
    data, tables = encapsulated(frames, table, fragments)
    extended = tuple(tables.values()) or None

    found = EncapsulatedFrames(data, len(frames), extended)

    for index in range(len(frames)):
        assert found[index] == get_frame(data, index, number_of_frames=len(frames), extended_offsets=extended)


def of_two_fragments(frames: list[bytes], second: int) -> bytes:
    """Two frames of two fragments each, and a Basic Offset Table with an offset of the second that may be wrong."""
    data = encapsulate(frames, fragments_per_frame=2)
    return data[:12] + second.to_bytes(4, "little") + data[16:]


@pytest.mark.parametrize("second", [0, 11, 0xFFFFFFFF])
def test_frames_that_cannot_be_told_apart_are_corrupt(second):
    """Offsets twice to the same place, into the middle and beyond the end."""
    with pytest.raises(CorruptImage, match="not those of fragments"):
        EncapsulatedFrames(of_two_fragments([b"abcd", b"efgh"], second), 2)[1]


@pytest.mark.parametrize("fragments", [2, 3])
@pytest.mark.parametrize("entries", [[0, 0, 0], [0, 0xFFFFFFFF, 0], [7, 8, 9], [0, 0, 0, 0]])
def test_a_wrong_table_is_not_needed_where_codestreams_end(entries, fragments):
    """As many ends as frames say where each is, such as under a table that was left zero."""
    frames = [b"abcdef\xff\xd9", b"ghijkl\xff\xd9", b"mnopqr\xff\xd9"]
    table = struct.pack(f"<4sL{len(entries)}L", b"\xfe\xff\x00\xe0", 4 * len(entries), *entries)
    data = table + encapsulate(frames, fragments_per_frame=fragments, has_bot=False)[8:]

    assert [EncapsulatedFrames(data, 3)[index] for index in range(3)] == frames


def test_a_wrong_table_is_not_guessed_at():
    """A codestream fewer, or one more, than there are frames: which is which cannot be known."""
    frames = [b"abcdef\xff\xd9", b"ghijkl\xff\xd9", b"mnopqr\xff\xd9"]
    for claimed in (2, 4):
        table = struct.pack(f"<4sL{claimed}L", b"\xfe\xff\x00\xe0", 4 * claimed, *[0] * claimed)
        data = table + encapsulate(frames, fragments_per_frame=2, has_bot=False)[8:]

        with pytest.raises(CorruptImage, match="not those of fragments"):
            EncapsulatedFrames(data, claimed)[1]


def test_fragments_without_an_end_of_a_frame_are_corrupt():
    """Three fragments of two frames, and no table."""
    with pytest.raises(CorruptImage, match="fewer frames"):
        EncapsulatedFrames(encapsulate([b"ab", b"cd", b"ef"], has_bot=False), 2)[1]


@pytest.mark.parametrize("offset", [0, 11, 0xFFFFFFFF])
def test_a_fragment_a_frame_needs_no_table(offset):
    """Where there are as many fragments as frames, each is one, whatever a Basic Offset Table says."""
    data = encapsulate([b"ab", b"cd"]).replace(b"\x0a\0\0\0", offset.to_bytes(4, "little"), 1)

    assert [EncapsulatedFrames(data, 2)[index] for index in range(2)] == [b"ab", b"cd"]


def test_a_table_with_a_single_zero_says_nothing():
    """As some writers leave it: a fragment for each frame, or frames that end where their codestreams do."""
    frames = [b"abcdef\xff\xd9", b"ghijkl\xff\xd9", b"mnopqr\xff\xd9"]
    zero = b"\xfe\xff\x00\xe0\x04\0\0\0" + bytes(4)
    for fragments in (1, 2):
        data = zero + encapsulate(frames, fragments_per_frame=fragments, has_bot=False)[8:]

        assert [EncapsulatedFrames(data, 3)[index] for index in range(3)] == frames


@pytest.mark.parametrize("damage", [lambda table: table[:8], lambda table: table[:8] + b"\x07" + table[9:]])
def test_a_wrong_extended_offset_table_is_not_needed(damage):
    """It is for one fragment a frame (PS3.3 C.7.6.3.1.8), so the fragments say the same."""
    data, offsets, lengths = encapsulate_extended([b"ab", b"cd"])

    assert EncapsulatedFrames(data, 2, (damage(offsets), lengths))[1] == b"cd"


@pytest.mark.parametrize(("second", "said"), [(b"", "fewer frames"), ((11).to_bytes(8, "little"), "not those of")])
def test_an_extended_offset_table_that_is_needed_is_not_guessed_at(second, said):
    """Of more fragments than frames, each has to be where the table says."""
    data, offsets, lengths = encapsulate_extended([b"ab", b"cd", b"ef"])

    with pytest.raises(CorruptImage, match=said):
        EncapsulatedFrames(data, 2, (offsets[:8] + second, lengths))[1]


# --- lossy syntaxes, beside another decoder ---


def pillow(encoded: bytes) -> np.ndarray:
    """Pillow's own libjpeg-turbo or OpenJPEG, colours as they are stored."""
    image = PillowImage.open(io.BytesIO(encoded))
    image.draft("YCbCr", None)
    return np.asarray(image)


def lossy() -> Iterator[Any]:
    """Syntax, kind, encoded picture, the picture as another decoder has it, and the bound of the difference."""
    grey, deep, rgb = picture("u1"), picture("u2 of 12"), picture("rgb")
    ycc = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"}
    for name, values, options in (("grey", grey, {}), ("4:4:4", rgb, {**ycc, "subsampling": "444"})):
        encoded = imagecodecs.jpeg8_encode(values, level=80, **options)
        yield pytest.param(JPEGBaseline8Bit, "YBR_FULL", encoded, pillow(encoded), 1, id=f"baseline {name}")
    # No other permissive decoder reads 12 bits: the picture itself, within a step of the finest quantisation.
    encoded = imagecodecs.jpeg8_encode(deep, level=100, bitspersample=12)
    yield pytest.param(JPEGExtended12Bit, "", encoded, deep, 2, id="extended 12 bit")
    encoded = bytes(encode_charls(deep, lossy_error=3))  # NEAR, which the standard makes a bound
    yield pytest.param(JPEGLSNearLossless, "", encoded, deep, 3, id="near-lossless picture")
    yield pytest.param(JPEGLSNearLossless, "", encoded, imagecodecs.jpegls_decode(encoded), 0, id="near-lossless")
    encoded = encode_openjpeg(grey, 8, compression_ratios=[6.0])
    yield pytest.param(JPEG2000, "", encoded, pillow(encoded), 1, id="jpeg 2000")
    calm = (deep // 2 + 1000).astype(np.uint16)  # OpenJPH lets overshoot beyond the range wrap around
    encoded = imagecodecs.htj2k_encode(calm, level=0.01, reversible=False)
    yield pytest.param(HTJ2K, "", encoded, imagecodecs.htj2k_decode(encoded), 1, id="htj2k")


@pytest.mark.parametrize(("syntax", "photometric", "encoded", "expected", "bound"), list(lossy()))
def test_lossy_is_what_another_decoder_makes_of_it(syntax, photometric, encoded, expected, bound, make_dicom):
    """Within a stated number of stored values; lossy decoders round differently."""
    said = {"PhotometricInterpretation": photometric} if expected.ndim == 3 else {}
    bits = 8 if expected.dtype == np.uint8 else 16 if syntax == HTJ2K else 12

    found = stored(make_dicom(expected, syntax=syntax, encoded=[encoded], BitsStored=bits, HighBit=bits - 1, **said))[0]

    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= bound
