"""Promises of what stored values mean beside the plain pipeline: palettes over grey, X-ray's own rules, odd files."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from deepmcat_core.errors import UnsupportedImage
from deepmcat_core.frame import ImageFlag
from deepmcat_core.header import read_header

STEPS = np.arange(5, dtype=np.uint16).reshape(1, 5) * 100  # 0, 100, 200, 300, 400
QUARTERS = np.array([[0, 0.25, 0.5, 0.75, 1]], dtype=np.float32)

XA, XRF, CR = "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.1"


def item(**attributes: object) -> Dataset:
    """A data set with attributes."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def palette(entries: list[int], first: int, bits: int = 16) -> dict[str, object]:
    """The attributes of a palette whose three colours are the same."""
    data = np.array(entries, dtype=f"<u{bits // 8}").tobytes()
    return {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [len(entries), first, bits]), ("Data", data))
    }


def lut(entries: list[int]) -> Dataset:
    """An item of a LUT sequence, for inputs from 0."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries), 0, 16])
    table.add_new("LUTData", "OW", np.asarray(entries, dtype="<u2").tobytes())
    return table


# --- stored values ---


@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_whole_numbers_of_64_bits_are_stretched(dtype, make_dicom, grey_of):
    """BitsAllocated 64 is allowed for them too (PS3.5 8.1.1)."""
    np.testing.assert_allclose(grey_of(make_dicom(STEPS.astype(dtype))), QUARTERS, atol=1e-6)


@pytest.mark.parametrize("mode", ["percentile", "window"])
def test_overlays_in_unused_bits_are_flagged_and_masked(mode, make_dicom, decode_image):
    """Retired in 2004 and still in archives: a plane of an overlay above the bits that are stored."""
    stored = STEPS | np.array([[0x1000, 0, 0x8000, 0, 0x1000]], dtype=np.uint16)
    window = {"WindowCenter": 200.5, "WindowWidth": 401}
    data = make_dicom(stored, BitsStored=12, HighBit=11, **window)
    overlay = struct.pack("<HH2sHH", 0x6000, 0x0102, b"US", 2, 12)  # Overlay Bit Position, and no Overlay Data
    pixels = data.index(b"\xe0\x7f\x10\x00")

    image = decode_image(data[:pixels] + overlay + data[pixels:], mode=mode)

    assert image.flags == {ImageFlag.OVERLAYS_IGNORED}
    np.testing.assert_allclose(image.frames[0].pixels, QUARTERS, atol=1e-6)


@pytest.mark.parametrize(("dtype", "keyword"), [("f4", "FloatPixelPadding"), ("f8", "DoubleFloatPixelPadding")])
def test_padding_of_floats_has_elements_of_its_own(dtype, keyword, make_dicom, grey_of):
    """A value, or a range of them; that for whole numbers means nothing to floats."""
    stored = np.array([[-9.5, -9, 0, 1, 2]], dtype=dtype)
    attributes = {f"{keyword}Value": -9.5, f"{keyword}RangeLimit": -9.0, "PixelPaddingValue": 1}

    np.testing.assert_allclose(grey_of(make_dicom(stored, **attributes)), [[0, 0, 0, 0.5, 1]], atol=1e-6)


# --- palettes ---


def test_a_supplemental_palette_colours_what_lies_in_its_range(make_dicom, grey_of):
    """Values from its first on are colours, not intensities, and do not count for the range of the others."""
    stored = np.array([[0, 50, 100, 1000, 1001, 1002, 2000]], dtype=np.uint16)
    colours = palette([0, 13107, 65535], 1000)

    grey = grey_of(make_dicom(stored, PixelPresentation="COLOR", **colours))

    np.testing.assert_allclose(grey, [[0, 0.5, 1, 0, 0.2, 1, 1]], atol=1e-4)


def test_a_palette_of_an_image_that_is_presented_in_grey_is_not_used(make_dicom, grey_of):
    """Pixel Presentation says whether it is (PS3.3 C.8.16.2.1.1)."""
    data = make_dicom(STEPS, PixelPresentation="MONOCHROME", **palette([0, 65535], 300))

    np.testing.assert_allclose(grey_of(data), QUARTERS, atol=1e-6)


def test_a_public_perfusion_map_has_its_colours(corpus_bytes, grey_of):
    """Blood flow in colours where there is brain, and air in grey; the colours are those that pydicom looks up."""
    data = corpus_bytes("eCT_Supplemental.dcm")
    dataset = pydicom.dcmread(io.BytesIO(data))
    stored = pixel_array(dataset, index=1)
    coloured = stored >= 1024  # the first of the palette, which pydicom takes for one of all values
    del dataset.PixelPresentation
    colours = apply_color_lut(stored, dataset)[coloured] / 65535

    grey = grey_of(data)

    np.testing.assert_allclose(grey[coloured], colours @ [0.299, 0.587, 0.114], atol=1e-5)
    np.testing.assert_allclose(grey[~coloured], stored[~coloured] / stored[~coloured].max(), atol=1e-5)
    assert 0.2 < coloured.mean() < 0.4


# --- the grayscale pipeline ---


@pytest.mark.parametrize("sop_class", [XA, XRF])
@pytest.mark.parametrize("relationship", ["LOG", "DISP"])
@pytest.mark.parametrize("mode", ["percentile", "window"])
def test_angiography_keeps_its_stored_values(sop_class, relationship, mode, make_dicom, grey_of):
    """There a modality LUT leads back to the beam's intensity, and not to what is shown (PS3.3 C.8.7.1.1.2)."""
    table = {"ModalityLUTSequence": Sequence([lut([65535, 9, 8, 7, 6])])}
    window = {"WindowCenter": 2.5, "WindowWidth": 5}
    data = make_dicom(STEPS // 100, SOPClassUID=sop_class, PixelIntensityRelationship=relationship, **table, **window)

    np.testing.assert_allclose(grey_of(data, mode=mode), QUARTERS, atol=1e-6)


@pytest.mark.parametrize(("sop_class", "relationship"), [(XA, "LIN"), (CR, "LOG")])
def test_other_x_rays_are_looked_up(sop_class, relationship, make_dicom, grey_of):
    """Elsewhere the relationship describes the values, and the modality LUT is applied."""
    table = {"ModalityLUTSequence": Sequence([lut([400, 300, 200, 100, 0])])}
    data = make_dicom(STEPS // 100, SOPClassUID=sop_class, PixelIntensityRelationship=relationship, **table)

    np.testing.assert_allclose(grey_of(data), 1 - QUARTERS, atol=1e-6)


def test_real_world_values_are_not_looked_at(make_dicom, grey_of):
    """They are for measuring and beside the pipeline (PS3.3 C.7.6.16.2.11)."""
    mapping = item(RealWorldValueSlope=-1.0, RealWorldValueIntercept=9.0)
    shared = item(RealWorldValueMappingSequence=Sequence([mapping]))
    data = make_dicom(
        STEPS,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        RealWorldValueMappingSequence=Sequence([mapping]),
    )

    np.testing.assert_allclose(grey_of(data), QUARTERS, atol=1e-6)


@pytest.mark.parametrize(
    ("photometric", "shape", "expected"),
    [
        ("MONOCHROME2", "IDENTITY", QUARTERS),
        ("MONOCHROME2", "INVERSE", 1 - QUARTERS),
        ("MONOCHROME1", "IDENTITY", 1 - QUARTERS),  # not allowed, and what is stored decides
        ("MONOCHROME1", "INVERSE", 1 - QUARTERS),
    ],
)
def test_presentation_lut_shapes(photometric, shape, expected, make_dicom, grey_of):
    """INVERSE turns over, IDENTITY does not turn back, and a Presentation LUT Sequence is for printers."""
    printers = Sequence([lut([65535, 0])])
    attributes = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}

    grey = grey_of(make_dicom(STEPS, PresentationLUTSequence=printers, **attributes))

    np.testing.assert_allclose(grey, expected, atol=1e-6)


@pytest.mark.parametrize("keyword", ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"])
def test_functional_groups_that_are_none_are_left_out(keyword, make_dicom, grey_of):
    """Damage in them costs the transforms that they hold, and neither image nor header."""
    data = make_dicom(STEPS, **{keyword: Sequence([])}, Modality="CT")
    broken = data.replace(b"SQ\0\0\0\0\0\0", b"LO\x08\0BADBADXX", 1)

    for damaged in (data, broken):
        np.testing.assert_allclose(grey_of(damaged), QUARTERS, atol=1e-6)
        assert read_header(damaged).coded["Modality"] == "CT"


# --- colour ---


@pytest.mark.parametrize(
    ("photometric", "expected"),
    [
        ("YBR_FULL", [[0.2, 0.8]]),
        ("YBR_RCT", [[0.2, 0.8]]),
        ("YBR_ICT", [[0.2, 0.8]]),
    ],
)
def test_every_ybr_has_its_luminance_in_y(photometric, expected, make_dicom, grey_of):
    """Whatever the other two are."""
    pixels = np.array([[[51, 128, 128], [204, 90, 200]]], dtype=np.uint8)

    np.testing.assert_allclose(grey_of(make_dicom(pixels, PhotometricInterpretation=photometric)), expected, atol=1e-6)


def test_ybr_with_half_the_colours_is_read(make_dicom, grey_of):
    """YBR_FULL_422 without compression: two Y, then a Cb and a Cr for both (PS3.3 C.7.6.3.1.2)."""
    packed = bytes([0, 51, 9, 200, 102, 255, 128, 128])
    data = make_dicom(np.zeros((1, 4, 3), dtype=np.uint8), PhotometricInterpretation="YBR_FULL_422", PixelData=packed)

    np.testing.assert_allclose(grey_of(data), [[0, 0.2, 0.4, 1]], atol=1e-6)


def test_partial_ybr_has_a_range_of_its_own(make_dicom, grey_of):
    """Black is 16 and white 235."""
    pixels = np.array([[[16, 128, 128], [235, 128, 128]]], dtype=np.uint8)
    data = make_dicom(pixels, PhotometricInterpretation="YBR_PARTIAL_422")

    np.testing.assert_allclose(grey_of(data), [[0, 1]], atol=1e-6)


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "ARGB"])
def test_colours_that_are_no_longer_allowed_are_unsupported(photometric, make_dicom, decode_image):
    """Taken for RGB they would be another picture."""
    with pytest.raises(UnsupportedImage):
        decode_image(make_dicom(np.zeros((2, 2, 3), dtype=np.uint8), PhotometricInterpretation=photometric))


# --- around the data set ---


def group_lengths(data: bytes, order: str, vr: bytes) -> bytes:
    """A bare data set with a group length before its first element."""
    length = struct.pack(order + "HH", 0x0008, 0) + vr + struct.pack(order + ("H" if vr else "L"), 4)
    return length + struct.pack(order + "L", 60) + data


@pytest.mark.parametrize(
    ("syntax", "order", "vr"),
    [(ImplicitVRLittleEndian, "<", b""), (ExplicitVRLittleEndian, "<", b"UL"), (ExplicitVRBigEndian, ">", b"UL")],
)
def test_group_lengths_are_read_over(syntax, order, vr, make_dicom, grey_of):
    """Retired, and what old objects begin with."""
    bare = make_dicom(STEPS, syntax=syntax, bare=True)

    np.testing.assert_allclose(grey_of(group_lengths(bare, order, vr)), QUARTERS, atol=1e-6)


COMMAND = b"".join(
    struct.pack("<HHL", 0, number, len(value)) + value
    for number, value in ((0, struct.pack("<L", 20)), (0x0100, b"\1\0"), (0x0800, b"\0\0"))
)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_command_group_is_read_over(syntax, make_dicom, decode_image):
    """What a network dump has before the data set: always implicit, whatever follows (PS3.7 6.3.1)."""
    bare = make_dicom(STEPS, syntax=syntax, bare=True)
    whole = make_dicom(STEPS, syntax=syntax)
    start = whole.index(b"\x08\x00\x16\x00")

    dumped, filed = decode_image(COMMAND + bare), decode_image(whole[:start] + COMMAND + whole[start:])

    np.testing.assert_allclose(dumped.frames[0].pixels, QUARTERS, atol=1e-6)
    np.testing.assert_allclose(filed.frames[0].pixels, QUARTERS, atol=1e-6)
    assert (dumped.flags, filed.flags) == ({ImageFlag.TRANSFER_SYNTAX_GUESSED}, frozenset())


# --- text ---


@pytest.mark.parametrize("charset", ["ISO_IR 100", "NOT A CHARSET", "ISO 2022 IR 87", "", "ISO_IR 192"])
def test_no_character_set_keeps_a_header_from_being_read(charset, make_dicom):
    """What is not in its character set, or in one that nobody knows, is replaced and never raised."""
    written = "ISO 2022 IR 100"
    data = make_dicom(STEPS, SpecificCharacterSet=written, SeriesDescription="XXXX", Modality="MR")
    data = data.replace(written.encode() + b" ", charset.encode().ljust(16)).replace(b"XXXX", b"t\xff\x1b\xe4")

    header = read_header(data)

    assert header.coded["Modality"] == "MR"
    assert header.descriptions["SeriesDescription"].startswith("t")


@pytest.mark.parametrize("missing", ["SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit"])
@pytest.mark.parametrize("side", [16, 600])
def test_what_a_header_lacks_without_a_doubt_is_filled_in(missing, side, make_dicom, decode_image):
    """A grey image without one of these is the same image, in full and at a part of its size, native or compressed."""
    grey = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint16)
    compressed = [imagecodecs.jpeg2k_encode(grey, level=0, codecformat="j2k")]
    for syntax, encoded in ((ExplicitVRLittleEndian, None), (JPEG2000Lossless, compressed)):
        whole = make_dicom(grey, syntax=syntax, encoded=encoded, BitsStored=16, HighBit=15)
        expected = decode_image(whole, side=128).frames[0].pixels
        dataset = pydicom.dcmread(io.BytesIO(whole))
        del dataset[missing]
        lacking = io.BytesIO()
        dataset.save_as(lacking)

        np.testing.assert_array_equal(decode_image(lacking.getvalue(), side=128).frames[0].pixels, expected)


def test_colours_without_planar_configuration_are_by_pixel(make_dicom, decode_image):
    """As they nearly always are; in JPEG the element means nothing at all."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    whole = make_dicom(colours, PlanarConfiguration=0)
    dataset = pydicom.dcmread(io.BytesIO(whole))
    del dataset.PlanarConfiguration
    lacking = io.BytesIO()
    dataset.save_as(lacking)

    found, expected = (decode_image(data).frames[0].pixels for data in (lacking.getvalue(), whole))
    np.testing.assert_array_equal(found, expected)
