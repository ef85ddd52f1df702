"""Promises of DICOM decoding: what stored values look like, which frames are touched, and what is refused unread."""

from __future__ import annotations

import io
import logging
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from deepmcat_core.dicom import pixel_aspect
from deepmcat_core.dicom_grey import window
from deepmcat_core.errors import CorruptImage, ImageError, ImageTooLarge, NotAnImage, UnsupportedImage
from deepmcat_core.frame import Frame, ImageFlag, Limits
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing

STEPS = np.arange(5, dtype=np.uint16).reshape(1, 5) * 100  # 0, 100, 200, 300, 400
QUARTERS = np.array([[0, 0.25, 0.5, 0.75, 1]], dtype=np.float32)


def item(**attributes: object) -> Dataset:
    """A data set with attributes; a list of data sets is a sequence."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        is_sequence = isinstance(value, list) and isinstance(value[0], Dataset)
        setattr(dataset, keyword, Sequence(value) if is_sequence else value)
    return dataset


def lut(entries: list[int], first: int = 0, bits: int = 16, vr: str = "US") -> Dataset:
    """An item of a LUT sequence."""
    table = Dataset()
    table.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    table.add_new("LUTData", "OW", np.asarray(entries, dtype="<u2").tobytes())
    return table


# --- stored values ---


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_every_kind_of_sample_is_stretched(dtype, make_dicom, grey_of):
    """Bytes, words, signed or not, and floats: the least value is black, the greatest white."""
    low = -50 if np.dtype(dtype).kind in "if" else 0
    values = (np.arange(5) * 10 + low).astype(dtype).reshape(1, 5)

    np.testing.assert_allclose(grey_of(make_dicom(values)), QUARTERS, atol=1e-6)


def test_single_bits_are_unpacked(make_dicom, grey_of):
    """A segmentation of one bit a pixel is black and white."""
    packed = np.packbits(np.array([[1, 0, 0, 1, 0, 1, 1, 0]] * 2, dtype=np.uint8), bitorder="little").reshape(1, 2)
    data = make_dicom(packed, Rows=2, Columns=8, BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0)

    np.testing.assert_array_equal(grey_of(data), [[1, 0, 0, 1, 0, 1, 1, 0]] * 2)


def test_a_mask_of_single_bits_is_not_stretched(make_dicom):
    """What little is set is as white as it is large, at any size."""
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[100:103, 7:90] = 1
    packed = np.packbits(mask, bitorder="little").reshape(1, -1)
    data = make_dicom(packed, Rows=256, Columns=256, BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0)

    expected = Preprocessing().apply(Frame(pixels=mask.astype(np.float32)))

    np.testing.assert_array_equal(read_planes(data, ReadOptions()).planes[0], expected)


def test_unused_bits_do_not_matter(make_dicom, grey_of):
    """Bits above Bits Stored may hold overlays or rubbish, in signed pixels too."""
    values = np.array([[-2, -1, 0, 1, 2]], dtype=np.int16) & 0x0FFF | 0x5000
    data = make_dicom(values.astype(np.int16), BitsStored=12, HighBit=11)

    np.testing.assert_allclose(grey_of(data), QUARTERS, atol=1e-6)


def test_high_bit_is_heeded(make_dicom, grey_of):
    """Old objects keep their bits at the top of a word, with others below."""
    data = make_dicom((STEPS // 100 << 4 | 0xF).astype(np.uint16), BitsStored=12, HighBit=15)

    np.testing.assert_allclose(grey_of(data), QUARTERS, atol=1e-6)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_native_syntaxes_agree(syntax, dtype, make_dicom, grey_of):
    """The same values look the same in every native transfer syntax, deflated included."""
    values = np.arange(64, dtype=dtype).reshape(8, 8)

    np.testing.assert_array_equal(grey_of(make_dicom(values, syntax=syntax)), grey_of(make_dicom(values)))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_is_exact(bits, make_dicom, grey_of):
    """Our own plugin gives back what was encoded, bit by bit."""
    dtype = np.uint8 if bits == 8 else np.uint16
    values = np.random.default_rng(bits).integers(0, 2**bits, (17, 23)).astype(dtype)
    encoded = imagecodecs.ljpeg_encode(values, bitspersample=bits)
    data = make_dicom(values, syntax=JPEGLosslessSV1, encoded=[encoded], BitsStored=bits, HighBit=bits - 1)

    np.testing.assert_array_equal(grey_of(data), grey_of(make_dicom(values)))


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("693_J2KR.dcm", "693_UNCR.dcm"),
        ("RG3_J2KR.dcm", "RG3_UNCR.dcm"),
        ("OBXXXX1A_rle_2frame.dcm", "OBXXXX1A_2frame.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
        ("emri_small_big_endian.dcm", "emri_small.dcm"),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm"),
        ("color-pl.dcm", "color-px.dcm"),
        ("gdcm-US-ALOKA-16_big.dcm", "gdcm-US-ALOKA-16.dcm"),
        ("liver_expb.dcm", "liver.dcm"),
    ],
)
def test_lossless_files_equal_their_originals(compressed, plain, corpus_bytes, decode_image):
    """Public pairs of files hold the same frames, whatever their syntax."""
    ours, theirs = (decode_image(corpus_bytes(name), count=2) for name in (compressed, plain))

    for frame, expected in zip(ours.frames, theirs.frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, expected.pixels)


# --- the grayscale pipeline ---


def test_modality_lut_reaches_the_window(make_dicom, grey_of):
    """A window is in Hounsfield units, after slope and intercept."""
    data = make_dicom(STEPS, RescaleSlope=2, RescaleIntercept=-400, WindowCenter=0, WindowWidth=400)

    np.testing.assert_allclose(grey_of(data, mode="window"), [[0, 0, 0.5, 1, 1]], atol=0.01)


@pytest.mark.parametrize(
    ("values", "first", "vr"),
    [([-4, -3, -2], -4, "SS"), ([-4, -3, -2], 65532, "US"), ([65532, 65533, 65534], -4, "SS")],
)
def test_a_modality_lut_starts_in_the_sign_of_the_pixels(values, first, vr, make_dicom, grey_of):
    """Writers get the VR of the first mapped value wrong: 65532 is -4 to signed pixels, and -4 is 65532 to others."""
    stored = np.array([values], dtype=np.uint16 if min(values) > 0 else np.int16)
    data = make_dicom(stored, ModalityLUTSequence=Sequence([lut([0, 50, 100], first, vr=vr)]))

    np.testing.assert_allclose(grey_of(data), [[0, 0.5, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "first"),
    [
        ({"RescaleIntercept": -1024}, 65436),  # -100
        ({"RescaleSlope": -1, "RescaleIntercept": 100}, 65336),  # -200
        ({}, 100),
        ({"RescaleIntercept": 40000}, 40000),
    ],
)
def test_a_voi_lut_starts_in_the_sign_of_its_input(attributes, first, make_dicom, grey_of):
    """It is signed where rescaling can make it so, whatever the pixels are (PS3.3 C.11.2.1.1)."""
    start = first - 65536 if first > 65000 else first
    stored = (start - attributes.get("RescaleIntercept", 0)) * attributes.get("RescaleSlope", 1)
    values = stored + np.arange(3) * attributes.get("RescaleSlope", 1)
    data = make_dicom(
        values.astype(np.uint16).reshape(1, 3), VOILUTSequence=Sequence([lut([0, 32768, 65535], first)]), **attributes
    )

    np.testing.assert_allclose(grey_of(data, mode="window"), [[0, 0.5, 1]], atol=1e-4)


@pytest.mark.parametrize(("slope", "expected"), [("-1", 1 - QUARTERS), ("0", QUARTERS), ("", QUARTERS)])
def test_slopes_that_mean_something_are_applied(slope, expected, make_dicom, grey_of):
    """A negative slope turns the image over; one of zero is a mistake and would erase it."""
    np.testing.assert_allclose(grey_of(make_dicom(STEPS, RescaleSlope=slope)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("1e300", "0"), ("-1e300", "0"), ("1e-60", "0"), ("1e308", "1e308"), ("1e-9", "1000000"), ("1", "1e15")],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_a_rescaling_of_any_size_leaves_the_picture(dtype, slope, intercept, make_dicom, grey_of):
    """Whatever the units, grey is a line over stored values; a slope says which way it goes."""
    data = make_dicom((STEPS // 2).astype(dtype), RescaleSlope=slope, RescaleIntercept=intercept)

    np.testing.assert_allclose(grey_of(data), 1 - QUARTERS if slope.startswith("-") else QUARTERS, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "window"),
    [
        (np.float32, 1, 1e4, {}),
        (np.float32, -1, 1e4, {}),
        (np.float32, 1e-4, 1, {}),
        (np.float64, 1, 1e13, {}),
        (np.float32, 1, 1e4, {"WindowCenter": 10000.5, "WindowWidth": 1, "VOILUTFunction": "LINEAR_EXACT"}),
    ],
)
def test_a_rescaling_leaves_floats_their_levels(dtype, slope, intercept, window, make_dicom, grey_of):
    """Floats have no finest step: 4096 of them are told apart, whatever an intercept would leave of their digits."""
    stored = np.linspace(0, 1, 4096, dtype=dtype).reshape(64, 64)
    data = make_dicom(stored, RescaleSlope=slope, RescaleIntercept=intercept, **window)

    grey = grey_of(data, mode="window" if window else "percentile")

    np.testing.assert_allclose(grey, 1 - stored if slope < 0 else stored, atol=1e-5)
    assert len(np.unique(grey)) == 4096


@pytest.mark.parametrize(
    ("slope", "intercept", "centre", "width"),
    [("1e300", "0", "2e302", "4e302"), ("1e-60", "0", "2e-58", "4e-58"), ("1", "16777216", "16777416", "400")],
)
def test_a_window_is_in_units_of_any_size(slope, intercept, centre, width, make_dicom, grey_of):
    """What single precision does not hold of them is computed in double."""
    window = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": "LINEAR_EXACT"}
    data = make_dicom(STEPS, RescaleSlope=slope, RescaleIntercept=intercept, **window)

    np.testing.assert_allclose(grey_of(data, mode="window"), QUARTERS, atol=1e-6)


def test_a_modality_lut_sequence_is_looked_up(make_dicom, grey_of):
    """Stored values below and above the table take its first and last entry."""
    data = make_dicom(STEPS // 100, ModalityLUTSequence=Sequence([lut([100, 0, 50], first=1)]))

    np.testing.assert_allclose(grey_of(data), [[1, 1, 0, 0.5, 0.5]], atol=1e-6)


def test_a_voi_lut_sequence_is_looked_up(make_dicom, grey_of):
    """Its outputs are grey levels of as many bits as it says."""
    data = make_dicom(STEPS // 100, VOILUTSequence=Sequence([lut([0, 4095, 2048, 1024, 0], bits=12)]))

    np.testing.assert_allclose(grey_of(data, mode="window"), [[0, 1, 0.5, 0.25, 0]], atol=1e-3)


def test_the_first_of_several_windows_is_used(make_dicom, grey_of):
    """Writers give alternatives; readers start with the first."""
    data = make_dicom(STEPS, WindowCenter=[200.5, 9], WindowWidth=[401, 9])

    np.testing.assert_allclose(grey_of(data, mode="window"), QUARTERS, atol=1e-6)


@pytest.mark.parametrize(
    "attributes", [{}, {"WindowCenter": 5, "WindowWidth": 0}, {"WindowCenter": "", "WindowWidth": 9}]
)
def test_without_a_usable_window_percentiles_are_used(attributes, make_dicom, grey_of):
    """Asking for windows does not fail the images that have none."""
    np.testing.assert_allclose(grey_of(make_dicom(STEPS, **attributes), mode="window"), QUARTERS, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        ("LINEAR", 0.0, 0.0),
        ("LINEAR", 127.5, 0.5),
        ("LINEAR", 255.0, 1.0),
        ("", 51.0, 0.2),
        ("LINEAR_EXACT", 0.0, 0.0),
        ("LINEAR_EXACT", 128.0, 0.5),
        ("LINEAR_EXACT", 192.0, 0.75),
        ("SIGMOID", 128.0, 0.5),
        ("SIGMOID", 192.0, 1 / (1 + np.exp(-1))),
    ],
)
def test_windows_are_the_functions_of_the_standard(function, value, expected):
    """PS3.3 C.11.2.1: a centre of 128 and a width of 256 make LINEAR the identity on bytes."""
    show = window(128, 256, function)

    assert show is not None
    np.testing.assert_allclose(show(np.array([[value]], dtype=np.float32)), expected, atol=1e-6)


def test_a_window_of_width_one_is_a_threshold():
    """The standard allows it, and there is nothing to divide by."""
    show = window(10, 1, "LINEAR")

    assert show is not None
    np.testing.assert_array_equal(show(np.array([[9.0, 10.0]])), [[0, 1]])


@pytest.mark.parametrize(
    "attributes", [{"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}]
)
def test_either_way_of_saying_so_inverts(attributes, make_dicom, grey_of):
    """MONOCHROME1 and a Presentation LUT Shape of INVERSE make the lowest value white."""
    np.testing.assert_allclose(grey_of(make_dicom(STEPS, **attributes)), 1 - QUARTERS, atol=1e-6)


def test_saying_it_twice_inverts_once(make_dicom, grey_of):
    """Digital X-ray objects have to say both."""
    data = make_dicom(STEPS, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")

    np.testing.assert_allclose(grey_of(data), 1 - QUARTERS, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(values=hnp.arrays(np.uint16, (4, 5), elements=st.integers(0, 4095)))
def test_monochrome1_of_inverted_values_is_monochrome2(values, make_dicom, grey_of):
    """Two ways to store a picture look the same."""
    stored = make_dicom(values)
    turned = make_dicom((4095 - values).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")

    np.testing.assert_allclose(grey_of(turned), grey_of(stored), atol=1e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(photometric, make_dicom, grey_of):
    """Padding says nothing about the range, and is black even where the lowest value is white."""
    values = np.array([[-2000, -2000, 0, 50, 100]], dtype=np.int16)
    data = make_dicom(values, PhotometricInterpretation=photometric, PixelPaddingValue=-2000)
    ramp = [0, 0.5, 1] if photometric == "MONOCHROME2" else [1, 0.5, 0]

    np.testing.assert_allclose(grey_of(data), [[0, 0, *ramp]], atol=1e-6)


def test_a_range_of_padding_is_masked_before_the_modality_lut(make_dicom, grey_of):
    """Padding is a matter of stored values (PS3.3 C.7.5.1.1.2); the limits are inclusive."""
    data = make_dicom(STEPS, PixelPaddingValue=0, PixelPaddingRangeLimit=100, RescaleIntercept=-1000)

    np.testing.assert_allclose(grey_of(data), [[0, 0, 0, 0.5, 1]], atol=1e-6)


def test_padding_in_the_wrong_sign_is_understood(make_dicom, grey_of):
    """Writers give the padding of signed pixels as an unsigned number."""
    values = np.array([[-2000, 0, 100]], dtype=np.int16)
    data = make_dicom(values, PixelPaddingValue=-2000).replace(b"\x28\0\x20\1SS", b"\x28\0\x20\1US")

    np.testing.assert_allclose(grey_of(data), [[0, 0, 1]], atol=1e-6)


def test_an_image_of_padding_is_black(make_dicom, grey_of):
    """Nothing to stretch is not an error."""
    assert not grey_of(make_dicom(np.zeros((3, 3), dtype=np.uint16), PixelPaddingValue=0)).any()


def test_constant_and_nan_pixels_are_black(make_dicom, grey_of):
    """A constant image has no range; what is no number has no grey."""
    assert not grey_of(make_dicom(np.full((3, 3), 7, dtype=np.uint16))).any()
    np.testing.assert_array_equal(grey_of(make_dicom(np.array([[np.nan, 1, 2]], dtype=np.float32))), [[0, 0, 1]])


@pytest.mark.parametrize(("dtype", "outlier"), [(np.uint16, 60000), (np.float32, -1e30), (np.float64, 1e300)])
@pytest.mark.parametrize("side", [50, 300])
def test_outliers_do_not_take_the_range(side, dtype, outlier, make_dicom):
    """Some hot or lost pixels leave the rest of a percentile-stretched image visible, enlarged as well as shrunk."""
    values = np.tile(np.linspace(0, 99, side).astype(dtype), (side, 1))
    values[10, ::25] = outlier

    plane = read_planes(make_dicom(values), ReadOptions()).planes[0]

    np.testing.assert_allclose(np.median(plane, axis=0), np.linspace(0, 255, 128), atol=7)


# --- enhanced multi-frame ---


def test_functional_groups_give_each_frame_its_own_transforms(make_dicom, decode_image):
    """Per-frame groups win over shared ones, and those over the data set, which may say nothing or another thing."""
    per_frame = [
        item(PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0)]),
        item(PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-200)]),
        item(),
    ]
    shared = item(
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=0)],
        FrameVOILUTSequence=[item(WindowCenter=200.5, WindowWidth=401)],
        PixelMeasuresSequence=[item(PixelSpacing=[2, 1])],
    )
    data = make_dicom(
        np.stack([STEPS] * 3),
        frames=3,
        RescaleSlope=100,
        WindowCenter=0,
        WindowWidth=1,
        PerFrameFunctionalGroupsSequence=Sequence(per_frame),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )

    image = decode_image(data, mode="window", count=3)

    np.testing.assert_allclose(image.frames[0].pixels, QUARTERS, atol=1e-6)
    np.testing.assert_allclose(image.frames[1].pixels, [[0, 0, 0, 0.25, 0.5]], atol=1e-6)
    np.testing.assert_allclose(image.frames[2].pixels, [[0, 0.5, 1, 1, 1]], atol=1e-6)
    assert [frame.pixel_aspect for frame in image.frames] == [2.0] * 3


def test_an_enhanced_ct_is_in_hounsfield_units(corpus_bytes):
    """A public enhanced CT keeps slope and intercept in its functional groups, where they are found."""
    from deepmcat_core.dicom_file import read_dicom_file
    from deepmcat_core.dicom_grey import modality_values

    dataset = read_dicom_file(corpus_bytes("eCT_Supplemental.dcm"), Limits()).dataset

    stored = np.array([[0, 1000]], dtype=np.uint16)
    np.testing.assert_allclose(modality_values(stored, dataset, 0, little_endian=True), stored - 1024.0)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_only_the_frames_of_the_policy_are_used(count, make_dicom, decode_image):
    """Evenly spaced ones, in order, and all where there are fewer."""
    frames = np.arange(9, dtype=np.uint16).reshape(9, 1, 1) + np.zeros((1, 1, 2), dtype=np.uint16)
    frames[..., 1] = 8

    image = decode_image(make_dicom(frames, frames=9), count=count)

    assert image.total_frames == 9
    assert [frame.index for frame in image.frames] == {1: [4], 2: [2, 6], 3: [1, 4, 7], 9: list(range(9))}[count]


def test_damage_in_a_frame_that_is_not_used_does_not_matter(make_dicom, decode_image):
    """The other frames are not decoded at all."""
    good = imagecodecs.ljpeg_encode(np.arange(64, dtype=np.uint8).reshape(8, 8))
    data = make_dicom(np.zeros((3, 8, 8), dtype=np.uint8), frames=3, syntax=JPEGLosslessSV1, encoded=[b"x", good, b"x"])

    assert decode_image(data, count=1).frames[0].index == 1
    with pytest.raises(CorruptImage):
        decode_image(data, count=3)


# --- colour ---


def test_rgb_becomes_luminance_in_any_planar_configuration(make_dicom, grey_of):
    """Rec. 601, with no stretch, modality LUT or window."""
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]]], dtype=np.uint8)
    planar = np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(1, 4, 3)
    options = {"RescaleSlope": 7, "WindowCenter": 3, "WindowWidth": 9, "mode": "window"}
    mode = options.pop("mode")

    for data in (make_dicom(pixels, **options), make_dicom(planar, PlanarConfiguration=1, **options)):
        np.testing.assert_allclose(grey_of(data, mode=mode), [[0.299, 0.587, 0.114, 100 / 255]], atol=1e-5)


def test_ybr_gives_its_own_luminance(make_dicom, grey_of):
    """Y of YBR_FULL is what RGB would be turned back into."""
    pixels = np.array([[[51, 128, 128], [204, 90, 200]]], dtype=np.uint8)

    np.testing.assert_allclose(
        grey_of(make_dicom(pixels, PhotometricInterpretation="YBR_FULL")), [[0.2, 0.8]], atol=1e-6
    )


@pytest.mark.parametrize("width", [8, 16])
def test_a_palette_is_looked_up(width, make_dicom, grey_of):
    """Indices below the first mapped value and beyond the last take the ends of the palette."""
    top = 2**width - 1
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        entries = np.array([0, top // 5, top, 0], dtype=f"<u{width // 8}").tobytes()
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 10, width]
        tables[f"{colour}PaletteColorLookupTableData"] = entries
    data = make_dicom(
        np.array([[0, 10, 11, 12, 99]], dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR", **tables
    )

    np.testing.assert_allclose(grey_of(data), [[0, 0, 0.2, 1, 0]], atol=1e-5)


def test_a_segmented_palette_is_expanded(make_dicom, grey_of):
    """Discrete and linear segments, and one that repeats the others (PS3.3 C.7.9.2)."""
    segments = [0, 2, 0, 0, 1, 2, 25700, 2, 2, 0, 0]  # [0, 0], a line over 2 to 25700, then both again
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [8, 0, 16]
        tables[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(segments, dtype="<u2").tobytes()
    data = make_dicom(np.arange(8, dtype=np.uint8).reshape(1, 8), PhotometricInterpretation="PALETTE COLOR", **tables)

    np.testing.assert_allclose(grey_of(data) * 255, [[0, 0, 50, 100, 0, 0, 50, 100]], atol=1e-3)


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (16, 65535)])
def test_a_dark_palette_stays_dark(bits, white, make_dicom, grey_of):
    """Entries in words of 16 bits are of as many bits as the palette says, not of as many as its brightest needs."""
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, bits]
        tables[f"{colour}PaletteColorLookupTableData"] = np.array([0, 100, 200], dtype="<u2").tobytes()
    data = make_dicom(np.arange(3, dtype=np.uint8).reshape(1, 3), PhotometricInterpretation="PALETTE COLOR", **tables)

    np.testing.assert_allclose(grey_of(data), [[0, 100 / white, 200 / white]], atol=1e-6)


def test_a_palette_starts_in_the_sign_of_the_pixels(make_dicom, grey_of):
    """As the other lookup tables do."""
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 65535, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = np.array([0, 32768, 65535], dtype="<u2").tobytes()
    pixels = np.array([[-1, 0, 1]], dtype=np.int16)
    data = make_dicom(pixels, PhotometricInterpretation="PALETTE COLOR", PixelRepresentation=0, **tables)
    at = data.index(b"\x28\0\x03\1US") + 8  # Pixel Representation; pydicom writes the descriptors by it
    data = data[:at] + b"\x01\0" + data[at + 2 :]

    np.testing.assert_allclose(grey_of(data), [[0, 0.5, 1]], atol=1e-4)


def test_a_palette_image_without_a_palette_is_corrupt(make_dicom, decode_image):
    """Indices mean nothing by themselves."""
    data = make_dicom(np.zeros((2, 2), dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")

    with pytest.raises(CorruptImage, match="lookup table"):
        decode_image(data)


# --- pixel aspect ---


@pytest.mark.parametrize(
    ("attributes", "aspect"),
    [
        ({}, 1.0),
        ({"PixelSpacing": [2, 1]}, 2.0),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [1, 2]}, 0.5),
        ({"PixelSpacing": [-1, 1], "PixelAspectRatio": ["3", "2"]}, 1.5),
        ({"PixelSpacing": [1, 1], "PixelAspectRatio": ["3", "2"]}, 1.0),
        ({"PixelSpacing": [1000, 0.001]}, 1.0),
        ({"PixelSpacing": ""}, 1.0),
    ],
)
def test_pixel_aspect_ignores_what_cannot_be(attributes, aspect):
    """Zero, negative and absurd spacings, which real files have, are passed over."""
    assert pixel_aspect(item(**attributes), 0) == aspect


# --- what is not an image, and flags ---


@pytest.mark.parametrize(
    "sop_class",
    [
        "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
        "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
        "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State
        "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
        "1.2.840.10008.5.1.4.1.1.481.5",  # RT Plan
        "1.2.840.10008.5.1.4.1.1.481.3",  # RT Structure Set
        "1.2.840.10008.5.1.4.1.1.9.1.1",  # 12-lead ECG Waveform
        "1.2.840.10008.5.1.4.1.1.66",  # Raw Data
        "1.2.840.10008.5.1.4.1.1.4.2",  # MR Spectroscopy
        "1.2.840.10008.1.3.10",  # DICOMDIR
    ],
)
def test_the_sop_class_says_what_is_not_an_image(sop_class, make_dicom, decode_image):
    """Even where there are pixels, and whatever Modality says."""
    with pytest.raises(NotAnImage):
        decode_image(make_dicom(STEPS, SOPClassUID=sop_class, Modality="CT"))


def test_an_object_without_pixels_is_not_an_image(make_dicom, decode_image):
    """An image class without an element of pixel data has nothing to look at."""
    data = make_dicom(STEPS)
    without = data[: data.index(b"\xe0\x7f\x10\x00")]

    with pytest.raises(NotAnImage, match="no pixel data"):
        decode_image(without)


SOP_CLASS, SOP_INSTANCE = b"\x08\0\x16\0UI", b"\x08\0\x18\0UI"


def without_element(data: bytes, start: bytes) -> bytes:
    """A file without its element, of a short form, that starts so."""
    at = data.index(start)
    return data[:at] + data[at + 8 + int.from_bytes(data[at + 6 : at + 8], "little") :]


def test_the_file_meta_group_may_say_what_the_data_set_does_not(make_dicom, decode_image):
    """An instance that has lost its SOP class is read, and judged, by the one that the file states."""
    image = decode_image(without_element(make_dicom(STEPS), SOP_CLASS))
    capture = make_dicom(STEPS, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")

    np.testing.assert_allclose(image.frames[0].pixels, QUARTERS, atol=1e-6)
    assert ImageFlag.SECONDARY_CAPTURE in decode_image(without_element(capture, SOP_CLASS)).flags
    with pytest.raises(NotAnImage):
        decode_image(without_element(make_dicom(STEPS, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"), SOP_CLASS))


def test_pixels_of_an_object_that_does_not_say_what_it_is_are_corrupt(make_dicom, decode_image):
    """Neither data set nor file has a SOP class; or the file has one, around what is no instance of anything."""
    with pytest.raises(CorruptImage, match="neither it nor its file meta group has a SOP Class UID"):
        decode_image(without_element(make_dicom(STEPS, bare=True), SOP_CLASS))
    with pytest.raises(CorruptImage, match="neither a SOP Class UID nor a SOP Instance UID"):
        decode_image(without_element(without_element(make_dicom(STEPS), SOP_CLASS), SOP_INSTANCE))


def test_what_came_before_dicom_is_unsupported(make_dicom, decode_image):
    """ACR-NEMA had no SOP classes and is not damaged for that."""
    data = without_element(make_dicom(STEPS, bare=True, RecognitionCode="ACR-NEMA 2.0"), SOP_CLASS)

    with pytest.raises(UnsupportedImage, match="ACR-NEMA"):
        decode_image(data)


@pytest.mark.parametrize(
    ("attributes", "flags"),
    [
        ({}, set()),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {ImageFlag.LOCALIZER}),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, {ImageFlag.DERIVED}),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, {ImageFlag.DERIVED}),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
            {ImageFlag.SECONDARY_CAPTURE, ImageFlag.BURNED_IN_TEXT_POSSIBLE},
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, {ImageFlag.BURNED_IN_TEXT_POSSIBLE}),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "BurnedInAnnotation": "NO"}, set()),
        ({"BurnedInAnnotation": "YES"}, {ImageFlag.BURNED_IN_TEXT_POSSIBLE}),
    ],
)
def test_flags_say_what_is_worth_knowing(attributes, flags, make_dicom, decode_image):
    """Flags come from ImageType, SOP class and Burned In Annotation."""
    assert decode_image(make_dicom(STEPS, **attributes)).flags == flags


def test_overlays_are_ignored_and_flagged(corpus_bytes, decode_image):
    """A public MR with overlays."""
    assert ImageFlag.OVERLAYS_IGNORED in decode_image(corpus_bytes("MR-SIEMENS-DICOM-WithOverlays.dcm")).flags


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_bare_data_set_is_read_and_flagged(syntax, make_dicom, decode_image):
    """As C-STORE delivers it: neither preamble nor file meta group, so the encoding is guessed."""
    image = decode_image(make_dicom(STEPS, syntax=syntax, bare=True))

    np.testing.assert_allclose(image.frames[0].pixels, QUARTERS, atol=1e-6)
    assert image.flags == {ImageFlag.TRANSFER_SYNTAX_GUESSED}


@pytest.mark.parametrize("preamble", [b"MZ\x90\x00", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"#!/bin/sh\n"])
def test_a_preamble_is_not_looked_at(preamble, make_dicom, grey_of):
    """Programs can hide there; it is skipped, whatever it holds."""
    data = preamble.ljust(128, b"\0") + make_dicom(STEPS)[128:]

    np.testing.assert_allclose(grey_of(data), QUARTERS, atol=1e-6)


@pytest.mark.parametrize(
    "syntax",
    [
        "1.2.840.10008.1.2.4.100",  # MPEG-2
        "1.2.840.10008.1.2.4.102",  # H.264
        "1.2.840.10008.1.2.4.107",  # HEVC
        "1.2.840.10008.1.2.4.92",  # JPEG 2000 Part 2
        "1.2.840.10008.1.2.4.94",  # JPIP
        "1.2.840.10008.1.2.4.95",  # JPIP, deflated
        "1.2.840.10008.1.2.7.1",  # SMPTE
        "1.2.826.0.1.3680043.9999.1",  # somebody's own
    ],
)
def test_syntaxes_that_are_not_read_are_unsupported(syntax, make_dicom, decode_image):
    """Video, JPIP, Part 2 and private syntaxes are said to be unsupported."""
    data = make_dicom(STEPS).replace(ExplicitVRLittleEndian.encode() + b"\0", b"%" * 20, 1)
    data = make_dicom(STEPS, syntax=JPEG2000, encoded=[b"video"])
    stated = JPEG2000.encode() + b"\0" * (len(JPEG2000) % 2)
    wanted = syntax.encode() + b"\0" * (len(syntax) % 2)
    at = data.index(b"\x02\x00\x10\x00UI")
    data = data[:at] + b"\x02\x00\x10\x00UI" + len(wanted).to_bytes(2, "little") + wanted + data[at + 8 + len(stated) :]

    with pytest.raises(UnsupportedImage):
        decode_image(data)


# --- refused unread ---


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"Rows": 40000}, ImageTooLarge),
        ({"Rows": 0}, CorruptImage),
        ({"Rows": 9}, CorruptImage),
        ({"BitsAllocated": 7}, CorruptImage),
        ({"BitsAllocated": 0}, CorruptImage),
        ({"BitsAllocated": 12}, UnsupportedImage),
        ({"BitsAllocated": 24}, UnsupportedImage),
        ({"SamplesPerPixel": 4}, UnsupportedImage),
        ({"SamplesPerPixel": 3}, CorruptImage),
        ({"NumberOfFrames": 50000}, CorruptImage),
        ({"NumberOfFrames": 2147483647}, CorruptImage),
        ({"NumberOfFrames": -1}, CorruptImage),
        ({"PhotometricInterpretation": "NONSENSE"}, CorruptImage),
        ({"PixelData": b""}, CorruptImage),
        ({"PixelData": b"12"}, CorruptImage),
    ],
)
def test_headers_that_do_not_fit_the_pixels_are_refused(attributes, error, make_dicom, decode_image):
    """Lying about sides, samples, bits or frames is an error, not an allocation."""
    with pytest.raises(error):
        decode_image(make_dicom(STEPS, **attributes))


def test_more_frames_than_fragments_are_refused_unread(make_dicom, decode_image):
    """50,000 frames claimed over one fragment would be 24 GiB if believed."""
    encoded = imagecodecs.ljpeg_encode(np.zeros((8, 8), dtype=np.uint8))
    data = make_dicom(
        np.zeros((8, 8), dtype=np.uint8), syntax=JPEGLosslessSV1, encoded=[encoded], NumberOfFrames=50_000
    )

    with pytest.raises(CorruptImage, match="claims 50000 frames and has 1 fragments"):
        decode_image(data)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEG2000])
def test_a_frame_of_another_size_is_refused_unread(syntax, make_dicom, decode_image):
    """A codestream says its own size in its first bytes: it has to be the header's before a codec sees it."""
    values = np.zeros((64, 64), dtype=np.uint8)
    encode = {JPEGBaseline8Bit: imagecodecs.jpeg8_encode, JPEGLosslessSV1: imagecodecs.ljpeg_encode}
    encoded = encode[syntax](values) if syntax in encode else imagecodecs.jpeg2k_encode(values, codecformat="j2k")
    data = make_dicom(np.zeros((8, 8), dtype=np.uint8), syntax=syntax, encoded=[encoded])

    with pytest.raises(CorruptImage, match="not of the size"):
        decode_image(data)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLosslessSV1, lambda values: imagecodecs.ljpeg_encode(values, bitspersample=12)),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEG2000Lossless, lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0)),
    ],
)
def test_a_frame_of_more_bits_than_are_allocated_is_refused(syntax, encode, make_dicom, decode_image, grey_of):
    """The low half of its samples would make a picture, and another one."""
    values = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint16) * 100
    size = {"syntax": syntax, "encoded": [encode(values)]}
    with pytest.raises(CorruptImage, match="the header allocates 8"):
        decode_image(make_dicom(values.astype(np.uint8), **size))

    ramp = np.add.outer(np.arange(16), np.arange(16)) / 30
    np.testing.assert_allclose(grey_of(make_dicom(values, BitsStored=12, HighBit=11, **size)), ramp, atol=1e-6)


def test_an_rle_frame_too_short_for_its_size_is_refused_unread(make_dicom, decode_image):
    """RLE makes 128 bytes of two at most."""
    data = make_dicom(np.zeros((4000, 4000), dtype=np.uint8), syntax=RLELossless, encoded=[bytes(100)])

    with pytest.raises(CorruptImage, match="too short"):
        decode_image(data)


@pytest.mark.parametrize("header", [[1, 4096], [1, 5_243_144], [1, 0], [2, 64, 66], [0], [1, 64, 0xFFFFFFFF]])
def test_rle_segments_are_looked_for_within_the_frame_only(header, make_dicom, decode_image):
    """Offsets are checked before the codec follows them: beyond the frame lies somebody else's memory."""
    encoded = struct.pack("<16L", *header, *[0] * (16 - len(header))) + b"\x81\x07"
    data = make_dicom(np.zeros((8, 16), dtype=np.uint8), syntax=RLELossless, encoded=[encoded])

    if header[:2] == [1, 64]:
        assert decode_image(data).frames[0].pixels.shape == (8, 16)
        return
    with pytest.raises(CorruptImage):
        decode_image(data)


def test_a_bit_a_pixel_is_unpacked_from_rle_too(make_dicom, grey_of):
    """Segmentations come so."""
    encoded = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x01\xf0\x0f"
    size = {"Rows": 2, "Columns": 8, "BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    data = make_dicom(np.zeros((2, 8), dtype=np.uint8), syntax=RLELossless, encoded=[encoded], **size)

    np.testing.assert_array_equal(grey_of(data), [[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [33, 900, 20_000])
def test_deep_nesting_is_refused_without_recursion(depth, undefined, make_dicom, decode_image):
    """Sequences in sequences, by the thousand, cost a loop and not a stack."""
    tag = b"\x40\x00\x75\x02SQ\0\0"
    if undefined:
        nested = (tag + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * depth
    else:
        pieces, length = [], 0
        for _ in range(depth):
            pieces.append(tag + (length + 8).to_bytes(4, "little") + b"\xfe\xff\x00\xe0" + length.to_bytes(4, "little"))
            length += 20
        nested = b"".join(reversed(pieces))
    data = make_dicom(STEPS)
    at = data.index(b"\xe0\x7f\x10\x00")

    with pytest.raises(ImageTooLarge, match="nests sequences deeper than 32"):
        decode_image(data[:at] + nested + data[at:])


def test_moderate_nesting_is_read(make_dicom, grey_of):
    """Real objects nest a few levels."""
    nested = item()
    for _ in range(10):
        nested = item(RequestAttributesSequence=[nested])

    data = make_dicom(STEPS, RequestAttributesSequence=Sequence([nested]))

    np.testing.assert_allclose(grey_of(data), QUARTERS, atol=1e-6)


def test_too_many_elements_are_refused(make_dicom, decode_image):
    """The walk over a header ends at the limit."""
    with pytest.raises(ImageTooLarge, match="more than 5 elements"):
        decode_image(make_dicom(STEPS), limits=Limits(max_elements=5))


def test_a_deflate_bomb_is_refused_at_the_cap(make_dicom, decode_image):
    """Nothing inflates beyond the limit, for a header either."""
    data = make_dicom(np.zeros((1024, 1024), dtype=np.uint16), syntax=DeflatedExplicitVRLittleEndian)

    with pytest.raises(ImageTooLarge, match="inflates to more than the 1000000 allowed"):
        decode_image(data, limits=Limits(max_inflated_bytes=1_000_000))
    assert decode_image(data).total_frames == 1


def test_an_implausible_inflation_is_refused(make_dicom, decode_image):
    """Beyond 64 MiB an object must not be a thousand times its deflated size, whatever else it promises."""
    bare = make_dicom(np.zeros((8192, 5000), dtype=np.uint16))
    start = bare.index(b"\x08\x00\x16\x00")
    meta = make_dicom(STEPS, syntax=DeflatedExplicitVRLittleEndian)
    end = meta.index(b"\x02\x00\x13\x00")
    end += 8 + int.from_bytes(meta[end + 6 : end + 8], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)

    with pytest.raises(ImageTooLarge, match="inflates"):
        decode_image(meta[:end] + packer.compress(bare[start:]) + packer.flush())


def test_more_frames_than_allowed_are_refused(make_dicom, decode_image):
    """The number of frames used is limited, not the number present."""
    data = make_dicom(np.zeros((5, 2, 2), dtype=np.uint8), frames=5)

    assert decode_image(data, count=2, limits=Limits(max_frames=2)).total_frames == 5
    with pytest.raises(ImageTooLarge, match="3 frames are asked for; up to 2"):
        decode_image(data, count=3, limits=Limits(max_frames=2))


CANARY = "ZZCANARYZZ"


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"Rows": 9},
        {"PhotometricInterpretation": CANARY},
        {"BitsAllocated": 7},
        {"SpecificCharacterSet": CANARY},
        {"NumberOfFrames": 7},
    ],
)
def test_nothing_of_a_header_gets_out(attributes, make_dicom, decode_image, recwarn):
    """Neither errors nor logs nor warnings hold text from a header, whatever pydicom says about it."""
    text = {"PatientName": CANARY, "PatientID": CANARY, "StationName": CANARY, "SeriesDescription": CANARY * 9}
    data = make_dicom(STEPS, **text, **attributes)
    recwarn.clear()  # of what writing it warned about
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        decode_image(data)
    except ImageError as error:
        said.write(str(error))
    finally:
        logging.getLogger().removeHandler(handler)

    assert CANARY not in said.getvalue()
    assert not recwarn.list
