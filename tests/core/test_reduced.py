"""Promises of decoding at a part of the size: it is the picture that all of it gives, or all of it is decoded."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openjpeg.utils import encode_array as encode_openjpeg
from PIL import Image as PillowImage
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from deepmcat_core import shrinking
from deepmcat_core.codestream import Codestream
from deepmcat_core.decoding import decode
from deepmcat_core.frame import Intensity
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing

SIDE = 32
OPTIONS = ReadOptions(preprocessing=Preprocessing(size=SIDE))

# The stated tolerance, in grey levels of 0 to 255: of the mean difference, and of all but a thousandth of the pixels.
MEAN, MOST = 2.0, 15.0

# Sizes that a halving divides and sizes that it does not, square, wide and tall.
SHAPES = [(256, 256), (259, 253), (190, 511), (513, 255)]


@functools.cache
def phantom(shape: tuple[int, int], bits: int, *, signed: bool = False) -> np.ndarray:
    """(H, W): a body with organs of many sizes, with edges as soft as a scanner's and noise of half a percent."""
    rng = np.random.default_rng([*shape, bits])
    rows, columns = (np.mgrid[0 : shape[0], 0 : shape[1]].T / shape).T - 0.5

    def disc(y: float, x: float, radius: float) -> np.ndarray:
        return 1 / (1 + np.exp((np.hypot(rows - y, columns - x) - radius) * 150))

    grey = 0.05 + disc(0, 0, 0.45) * (0.5 + 0.3 * rows)
    for _ in range(25):
        y, x, radius, brightness = rng.random(4)
        grey += disc(0, 0, 0.45) * disc(y - 0.5, x - 0.5, radius / 5) * 0.4 * (brightness - 0.5)
    noisy = np.clip(grey + rng.normal(0, 0.005, shape), 0, 1)
    return in_bits(noisy, bits, signed=signed)


def in_bits(picture: np.ndarray, bits: int, *, signed: bool = False) -> np.ndarray:
    """(H, W) stored values of a picture from 0 to 1."""
    values = np.rint(picture * (2**bits - 1)) - signed * 2 ** (bits - 1)
    return values.astype(("i" if signed else "u") + ("1" if bits <= 8 else "2"))


@functools.cache
def scenes(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """(H, W) from 0 to 1, each: what averages to other values by another filter, and what is stretched most."""
    rng = np.random.default_rng([*shape, 7])
    rows, columns = (np.mgrid[0 : shape[0], 0 : shape[1]].T / shape).T
    body = phantom(shape, 16) / 65535
    blob = np.exp(-((rows - 0.5) ** 2 + (columns - 0.4) ** 2) / 0.004)
    blocks = np.kron(rng.random((-(-shape[0] // 8), -(-shape[1] // 8))) > 0.93, np.ones((8, 8)))
    pictures = {
        "noise of 2 %": body + rng.normal(0, 0.02, shape),
        "noise of 10 %": body + rng.normal(0, 0.1, shape),
        "speckle": body * rng.rayleigh(0.8, shape) / 2,
        "few counts": rng.poisson(0.3 * body) / 20,
        "counts": rng.poisson(5 * body) / 50,
        "a faint ramp": 0.3 + 0.02 * columns,
        "a faint ramp in noise": 0.3 + 0.02 * columns + rng.normal(0, 0.01, shape),
        "hardly a ramp": 0.3 + 0.003 * rows,
        "nothing but noise": 0.5 + rng.normal(0, 0.03, shape),
        "black and white noise": (rng.random(shape) > 0.5).astype(float),
        "a mask": (8 * blob - 1).clip(0, 1),
        "a spot": blob * 0.9,
        "text": body * 0.3 + 0.7 * blocks[: shape[0], : shape[1]],
    }
    return {name: np.clip(picture, 0, 1) for name, picture in pictures.items()}


SCENES = [*scenes((32, 32))]


def full(data: bytes, options: ReadOptions = OPTIONS) -> np.ndarray:
    """The planes of an image all of which is decoded."""
    how = options.preprocessing
    image = decode(data, intensity=how.intensity, frames=options.frames, limits=options.limits)
    assert " at 1/" not in image.decoder
    return np.stack([how.apply(frame) for frame in image.frames])


def assert_alike(data: bytes, options: ReadOptions = OPTIONS, *, reduced: bool = True) -> None:
    """An image is within the tolerance, and decoded at a part of its size; not `reduced`: if that may be."""
    read = read_planes(data, options)
    difference = np.abs(read.planes.astype(int) - full(data, options))

    assert " at 1/" in read.decoder or not reduced
    assert difference.mean() <= MEAN
    assert np.percentile(difference, 99.9) <= MOST


def colours(grey: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W)."""
    return np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)


def reversible(values: np.ndarray, bits: int) -> bytes:
    return encode_openjpeg(values, bits, 1 if values.ndim == 3 else 0)


def irreversible(values: np.ndarray, bits: int) -> bytes:
    return encode_openjpeg(values, bits, 1 if values.ndim == 3 else 0, compression_ratios=[8.0])


def jpeg(values: np.ndarray, bits: int, colorspace: str = "YCBCR", **options: Any) -> bytes:
    if values.ndim == 3:  # stored as they are, and marked as that
        options |= {"colorspace": colorspace, "outcolorspace": colorspace}
    return imagecodecs.jpeg8_encode(values, level=90, **options)


JPEG_2000 = {
    JPEG2000Lossless: reversible,
    JPEG2000: irreversible,
    HTJ2KLossless: lambda values, bits: imagecodecs.htj2k_encode(values),
    HTJ2KLosslessRPCL: lambda values, bits: imagecodecs.htj2k_encode(values),
    HTJ2K: lambda values, bits: imagecodecs.htj2k_encode(values, level=0.002, reversible=False),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, False), (16, True)])
@pytest.mark.parametrize("syntax", JPEG_2000)
def test_jpeg_2000_looks_the_same(syntax, bits, signed, shape, make_dicom):
    """Of any precision and sign, whatever the levels of its transform are called."""
    values = phantom(shape, bits, signed=signed)
    encoded = JPEG_2000[syntax](values, bits)

    assert_alike(make_dicom(values, syntax=syntax, encoded=[encoded], BitsStored=bits, HighBit=bits - 1))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("bits", "shape"), [(8, (259, 253)), (12, (256, 256)), (16, (259, 253))])
@pytest.mark.parametrize("syntax", JPEG_2000)
def test_noise_and_faint_pictures_in_jpeg_2000_look_the_same(syntax, bits, shape, scene, make_dicom):
    """Whatever a stretch makes of them: either the codec's filter does not show, or all is decoded."""
    values = in_bits(scenes(shape)[scene], bits)
    encoded = JPEG_2000[syntax](values, bits)

    assert_alike(make_dicom(values, syntax=syntax, encoded=[encoded], BitsStored=bits, HighBit=bits - 1), reduced=False)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("shape", [(256, 256), (513, 511)])
def test_noise_and_faint_pictures_in_jpeg_look_the_same(shape, scene, make_dicom):
    """In DICOM, where they are stretched, in colours and in a plain file, where they are not."""
    values = in_bits(scenes(shape)[scene], 8)
    file = io.BytesIO()
    PillowImage.fromarray(values).save(file, "JPEG", quality=90)
    coloured = {"PhotometricInterpretation": "YBR_FULL"}

    assert_alike(make_dicom(values, syntax=JPEGBaseline8Bit, encoded=[jpeg(values, 8)]), reduced=False)
    assert_alike(file.getvalue())
    for syntax, encode in ((JPEGBaseline8Bit, jpeg), (JPEG2000Lossless, lambda v, bits: encode_openjpeg(v, bits, 0))):
        data = make_dicom(colours(values), syntax=syntax, encoded=[encode(colours(values), 8)], **coloured)
        assert_alike(data, reduced=False)


@pytest.mark.parametrize("scene", ["noise of 2 %", "a faint ramp", "a spot"])
@pytest.mark.parametrize("syntax", JPEG_2000)
def test_ordinary_noise_does_not_make_decoding_slow(syntax, scene, make_dicom):
    """It is averaged away well enough, and the picture is decoded at a part of its size."""
    values = in_bits(scenes((512, 512))[scene], 12)

    assert_alike(make_dicom(values, syntax=syntax, encoded=[JPEG_2000[syntax](values, 12)], BitsStored=12, HighBit=11))


@pytest.mark.parametrize("scene", ["few counts", "hardly a ramp", "nothing but noise", "black and white noise"])
def test_where_a_filter_would_show_all_is_decoded(scene, make_dicom):
    """So the picture is that of the uncompressed image, to the bit."""
    values = in_bits(scenes((256, 256))[scene], 8)
    native = read_planes(make_dicom(values), OPTIONS)
    read = read_planes(make_dicom(values, syntax=JPEG2000Lossless, encoded=[reversible(values, 8)]), OPTIONS)

    assert " at 1/" not in read.decoder
    np.testing.assert_array_equal(read.planes, native.planes)


@pytest.mark.parametrize("intensity", [Intensity(low=0, high=100), Intensity(low=25, high=75)])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_other_percentiles_look_the_same(photometric, scene, intensity, make_dicom):
    """What a stretch by them makes of a filter decides, not what the usual ones would."""
    values = in_bits(scenes((256, 256))[scene], 12)
    options = replace(OPTIONS, preprocessing=Preprocessing(size=SIDE, intensity=intensity))
    stored = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": photometric}

    data = make_dicom(values, syntax=JPEG2000Lossless, encoded=[reversible(values, 12)], **stored)

    assert_alike(data, options, reduced=False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_jpeg_looks_the_same(syntax, shape, make_dicom):
    """Eight bits of it, whichever of the two syntaxes they come in."""
    values = phantom(shape, 8)

    assert_alike(make_dicom(values, syntax=syntax, encoded=[jpeg(values, 8)]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("syntax", "photometric", "encode"),
    [
        (JPEGBaseline8Bit, "YBR_FULL", jpeg),
        (JPEGBaseline8Bit, "YBR_FULL_422", lambda values, bits: jpeg(values, bits, subsampling="420")),
        (JPEGBaseline8Bit, "YBR_FULL", lambda values, bits: jpeg(values, bits, "RGB")),  # marked by the encoder
        (JPEGBaseline8Bit, "RGB", lambda values, bits: jpeg(values, bits, "RGB")),
        (JPEGBaseline8Bit, "RGB", jpeg),  # marked by the encoder, and not what the header says
        (JPEG2000Lossless, "YBR_RCT", reversible),
        (JPEG2000, "YBR_ICT", irreversible),
        (JPEG2000Lossless, "YBR_FULL", lambda values, bits: encode_openjpeg(values, bits, 0)),
    ],
)
def test_colours_look_the_same(syntax, photometric, encode, shape, make_dicom):
    """Luminance of RGB or the Y of YCbCr, whichever the codestream or else the header says that they are."""
    values = colours(phantom(shape, 8))

    assert_alike(make_dicom(values, syntax=syntax, encoded=[encode(values, 8)], PhotometricInterpretation=photometric))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_plain_jpeg_looks_the_same(mode, shape):
    """A JPEG file as well as one in DICOM."""
    values = phantom(shape, 8)
    image = PillowImage.fromarray(values if mode == "L" else colours(values)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)

    assert_alike(file.getvalue())


@pytest.mark.parametrize(
    "attributes",
    [
        {"PixelSpacing": [1.7, 1]},
        {"PixelSpacing": [1, 2.5]},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"RescaleSlope": "-2.5", "RescaleIntercept": "-1000"},
    ],
)
@pytest.mark.parametrize("encode", [reversible, jpeg])
def test_what_the_header_makes_of_values_is_the_same(encode, attributes, make_dicom):
    """Proportions, inversion and rescaling, in a size that no halving divides."""
    values = phantom((511, 493), 8)
    syntax = JPEG2000 if encode is reversible else JPEGBaseline8Bit

    assert_alike(make_dicom(values, syntax=syntax, encoded=[encode(values, 8)], **attributes))


@pytest.mark.parametrize("encode", [reversible, jpeg])
@pytest.mark.parametrize("shape", [(511, 259), (259, 511), (507, 507)])
def test_the_picture_is_where_it_was(encode, shape, make_dicom):
    """Its outline to the pixel, and what is in it to a twentieth of one: low-pass samples are not in the middle."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    blob = np.exp(-((rows - shape[0] * 0.4) ** 2 + (columns - shape[1] * 0.6) ** 2) / 2 / 30**2)
    values = (40 + 200 * blob).astype(np.uint8)
    syntax = JPEG2000 if encode is reversible else JPEGBaseline8Bit
    data = make_dicom(values, syntax=syntax, encoded=[encode(values, 8)])

    reduced, expected = read_planes(data, OPTIONS).planes[0].astype(float), full(data)[0].astype(float)

    for axis in (0, 1):
        np.testing.assert_array_equal(reduced.any(axis=axis), expected.any(axis=axis))
        assert abs(centre(reduced, axis) - centre(expected, axis)) < 0.05


def centre(plane: np.ndarray, axis: int) -> float:
    """Of what is bright in a plane."""
    weights = np.clip(plane - 60, 0, None).sum(axis=1 - axis)
    return float(weights @ np.arange(len(weights)) / weights.sum())


def table(entries: list[int]) -> Sequence:
    """A lookup table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), 0, 8])
    item.add_new("LUTData", "OW", np.asarray(entries, dtype="<u2").tobytes())
    return Sequence([item])


PALETTE = {
    f"{colour}PaletteColorLookupTable{what}": value
    for colour in ("Red", "Green", "Blue")
    for what, value in (("Descriptor", [256, 0, 8]), ("Data", bytes(range(255, -1, -1))))
}


@pytest.mark.parametrize(
    ("attributes", "mode"),
    [
        ({"PixelPaddingValue": 3}, "percentile"),
        ({"ModalityLUTSequence": table([*range(256)])}, "percentile"),
        ({"PhotometricInterpretation": "PALETTE COLOR", **PALETTE}, "percentile"),
        ({"WindowCenter": 80, "WindowWidth": 20}, "window"),
        ({"PixelRepresentation": 1}, "percentile"),
    ],
)
@pytest.mark.parametrize("encode", [reversible, jpeg])
def test_what_must_not_be_averaged_is_not(encode, attributes, mode, make_dicom):
    """Padding, indices, what is looked up or windowed, and a sign that the codec does not know: all is decoded."""
    options = replace(OPTIONS, preprocessing=Preprocessing(size=SIDE, intensity=Intensity(mode=mode)))
    values = phantom((256, 256), 8)
    syntax = JPEG2000 if encode is reversible else JPEGBaseline8Bit
    data = make_dicom(values, syntax=syntax, encoded=[encode(values, 8)], **attributes)

    read = read_planes(data, options)

    assert " at 1/" not in read.decoder
    np.testing.assert_array_equal(full(data, options), read.planes)


@pytest.mark.parametrize(
    "name",
    [
        "JPEG2000.dcm",
        "MR2_J2KI.dcm",
        "MR2_J2KR.dcm",
        "RG1_J2KI.dcm",
        "RG1_J2KR.dcm",
        "RG3_J2KI.dcm",
        "RG3_J2KR.dcm",
        "explicit_VR-UN.dcm",
    ],
)
def test_real_files_look_the_same(name, corpus_bytes):
    """At the usual size, from several manufacturers."""
    assert_alike(corpus_bytes(name), ReadOptions())


def test_a_transform_of_few_levels_is_halved_as_often(make_dicom):
    """A codestream has the sizes that its encoder put into it, and no smaller."""
    values = phantom((512, 512), 8)
    encoded = {n: imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", resolutions=n + 1) for n in (0, 1, 2)}
    images = {n: make_dicom(values, syntax=JPEG2000, encoded=[data]) for n, data in encoded.items()}

    decoders = [read_planes(data, OPTIONS).decoder for data in images.values()]

    assert [decoder.partition(" at ")[2] for decoder in decoders] == ["", "1/2", "1/4"]
    np.testing.assert_array_equal(full(images[0]), read_planes(images[0], OPTIONS).planes)


def test_half_a_jpeg_is_judged_by_decoding_all_of_it(make_dicom, decode_image):
    """A frame that breaks off has the same answer, whatever the size that it is wanted in."""
    values = phantom((256, 256), 8)
    encoded = jpeg(values, 8)
    data = make_dicom(values, syntax=JPEGBaseline8Bit, encoded=[encoded[: len(encoded) // 2]])

    np.testing.assert_array_equal(full(data), read_planes(data, OPTIONS).planes)


@given(
    rows=st.integers(1, 5000), columns=st.integers(1, 5000), aspect=st.floats(1 / 16, 16), side=st.integers(16, 1024)
)
def test_a_margin_is_left(rows: int, columns: int, aspect: float, side: int) -> None:
    """In either direction, for each pixel of the square; and one halving more would be too many."""
    each = shrinking.pixels_each(rows, columns, aspect, side)
    scale = max(rows * aspect, columns) / side  # columns for a pixel of the square
    for is_wavelet, margin in ((True, shrinking.MARGIN_JPEG_2000), (False, shrinking.MARGIN_JPEG)):
        stated = Codestream(rows=rows, columns=columns, components=1, halvings=32, is_wavelet=is_wavelet)
        times = shrinking.halvings(stated, each)

        assert times == 0 or min(scale, scale / aspect) * (1 + 1e-9) >= margin * 2**times
        assert min(scale, scale / aspect) < margin * 2 ** (times + 1) * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.12, 0.2])
def test_fine_detail_in_a_part_stays_in_that_part(share, make_dicom):
    """A patch of noise in a smooth picture: the mean holds, the rest of the picture, and a wider bound in the patch."""
    side, options = 512, ReadOptions()
    rows, columns = np.mgrid[0:side, 0:side] - side / 2
    patch = round(share * side)
    values = 1000 + 600 * np.exp(-(rows**2 + columns**2) / 20000)
    values[40 : 40 + patch, 40 : 40 + patch] = np.random.default_rng(0).random((patch, patch)) * 4095
    stored = values.astype(np.uint16)
    encoded = [bytes(encode_openjpeg(stored, 12, 0))]
    data = make_dicom(stored, syntax=JPEG2000Lossless, encoded=encoded, BitsStored=12, HighBit=11)

    read = read_planes(data, options)

    assert read.decoder.endswith(" at 1/2")
    difference = np.abs(read.planes.astype(int) - full(data, options))[0]
    assert difference.mean() <= MEAN
    assert np.quantile(difference, 0.999) <= 35
    reach = (40 + patch) // 4 + 3  # in pixels of the plane, with what the filters reach
    difference[:reach, :reach] = 0
    assert difference.max() <= MOST
