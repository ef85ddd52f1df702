"""Promises of decoding: what is read, what is refused, and what grey comes out of files that are not DICOM."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from deepmcat_core.decoding import decode, sniff
from deepmcat_core.errors import (
    ConfigError,
    CorruptImage,
    ImageTooLarge,
    UnsupportedImage,
)
from deepmcat_core.frame import FramePolicy, Intensity, Limits, RawPlane
from deepmcat_core.translation import translated

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def _encoded(image: PillowImage.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_without_pixels(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", b"") + _png_chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF"])
def test_content_decides_what_an_image_is(name):
    """PNG, JPEG and TIFF are known by their first bytes."""
    assert sniff(_encoded(PillowImage.fromarray(RAMP), name)) == name.lower()


def test_dicom_wins_over_a_tiff_in_its_preamble(make_dicom):
    """A file that is DICOM and TIFF at once is DICOM."""
    data = b"II*\x00".ljust(128, b"\0") + make_dicom(RAMP)[128:]

    assert sniff(data) == "dicom"


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_eight_bit_grey_stays_as_it_is(name, grey_of):
    """A grey level of 0 to 255 becomes that part of 1, whatever else is in the image."""
    dark = (RAMP // 4).astype(np.uint8)

    np.testing.assert_allclose(grey_of(_encoded(PillowImage.fromarray(dark), name)), dark / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "colour", "luminance"),
    [
        ("RGB", (255, 0, 0), 0.299),
        ("RGBA", (0, 255, 0, 10), 0.587),
        ("CMYK", (255, 255, 0, 0), 0.114),
        ("LA", (51, 10), 0.2),
        ("1", 1, 1.0),
    ],
)
def test_colours_become_luminance(mode, colour, luminance, grey_of):
    """Colours weigh as Rec. 601 says, and alpha is ignored."""
    name = "TIFF" if mode == "CMYK" else "PNG"

    grey = grey_of(_encoded(PillowImage.new(mode, (3, 2), colour), name))

    assert grey.shape == (2, 3)
    np.testing.assert_allclose(grey, luminance, atol=1e-3)


def test_a_palette_is_looked_up(grey_of):
    """The numbers of a palette image are not grey levels."""
    image = PillowImage.new("P", (2, 2), 7)
    image.putpalette([0, 0, 0] * 7 + [255, 255, 255])

    np.testing.assert_allclose(grey_of(_encoded(image, "PNG")), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_stretched(name, grey_of):
    """Sixteen-bit images use a part of their range, like DICOM's, and get the same stretch."""
    deep = (1000 + 10 * RAMP.astype(np.uint16)).astype(np.uint16)

    np.testing.assert_allclose(grey_of(_encoded(PillowImage.fromarray(deep), name)), RAMP / 255, atol=1e-5)


def test_white_is_zero_is_inverted_at_any_depth(grey_of):
    """A TIFF may say that its zero is white: what looks the same is the same, in 8 bits and in 16."""
    shallow = _encoded(PillowImage.fromarray(RAMP), "TIFF", tiffinfo={262: 0})  # Pillow inverts what it writes
    deep = _encoded(PillowImage.fromarray((255 - RAMP).astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0})

    np.testing.assert_allclose(grey_of(shallow), RAMP / 255, atol=1e-5)
    np.testing.assert_allclose(grey_of(deep), RAMP / 255, atol=1e-5)


def test_pages_of_a_tiff_are_frames(decode_image):
    """The frame policy chooses among the pages of a TIFF."""
    pages = [PillowImage.new("L", (4, 4), value) for value in (0, 51, 102, 153, 204)]
    data = _encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])

    image = decode_image(data, count=2)

    assert (image.total_frames, [frame.index for frame in image.frames]) == (5, [1, 3])
    assert [round(float(frame.pixels[0, 0]), 3) for frame in image.frames] == [0.2, 0.6]


def test_exif_is_ignored(grey_of):
    """Pixels are the stored ones, not turned by what EXIF says of the camera."""
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    data = _encoded(PillowImage.fromarray(RAMP[:8]), "PNG", exif=exif)

    assert grey_of(data).shape == (8, 16)


@pytest.mark.parametrize("data", [b"GIF89a" + bytes(64), b"%PDF-1.7", b"<html>", b"\0" * 64, b"x"])
def test_other_formats_are_unsupported(data, decode_image):
    """What is not DICOM, PNG, JPEG or TIFF is said to be unsupported."""
    with pytest.raises(UnsupportedImage, match="DICOM, PNG, JPEG or TIFF"):
        decode_image(data)


def test_no_bytes_are_corrupt(decode_image):
    """An empty file is corrupt, not unsupported."""
    with pytest.raises(CorruptImage, match="no bytes"):
        decode_image(b"")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF"])
def test_half_a_file_is_corrupt(name, decode_image):
    """An image that breaks off is refused, not half decoded."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    data = _encoded(PillowImage.fromarray(noise), name)

    with pytest.raises(CorruptImage):
        decode_image(data[: len(data) // 2])


def test_more_bytes_than_allowed_are_refused(decode_image):
    """The size of a file is checked before it is looked at."""
    with pytest.raises(ImageTooLarge, match="300 bytes; up to 299"):
        decode_image(b"\x89PNG\r\n\x1a\n".ljust(300), limits=Limits(max_bytes=299))


@pytest.mark.parametrize(("width", "height"), [(32769, 1), (1, 40000), (30000, 30000)])
def test_a_png_that_claims_to_be_huge_is_refused_unread(width, height, decode_image):
    """A decompression bomb is refused by its header: there are no pixels behind this one."""
    with pytest.raises(ImageTooLarge):
        decode_image(_png_without_pixels(width, height))


def test_decoded_bytes_are_limited(decode_image):
    """An image within the sides may still be too large to decode."""
    data = _encoded(PillowImage.fromarray(RAMP), "PNG")

    with pytest.raises(ImageTooLarge, match="decode to 1024 bytes"):
        decode_image(data, limits=Limits(max_decoded_bytes=1023))


@pytest.mark.parametrize("sample_type", ["uint8", "uint16", "int16", "float32"])
def test_raw_planes_of_every_type_are_stretched(sample_type, grey_of):
    """A raw plane's stored values are stretched; MONOCHROME1 inverts."""
    values = RAMP.astype(sample_type)
    plane = RawPlane(rows=16, columns=16, sample_type=sample_type, data=values.tobytes())
    inverted = RawPlane(rows=16, columns=16, sample_type=sample_type, data=values.tobytes(), inverted=True)

    np.testing.assert_allclose(grey_of(plane), RAMP / 255, atol=1e-6)
    np.testing.assert_allclose(grey_of(inverted), 1 - RAMP / 255, atol=1e-6)


def test_what_is_no_number_is_black(grey_of):
    """NaN and infinity in a float plane say nothing about its range, and are black, inverted or not."""
    values = np.array([[np.nan, 1.0], [2.0, np.inf]], dtype="<f4")
    plane = RawPlane(rows=2, columns=2, sample_type="float32", data=values.tobytes(), inverted=True)

    np.testing.assert_array_equal(grey_of(plane), [[0, 1], [0, 0]])


def test_a_raw_plane_has_the_bytes_it_claims(decode_image):
    """One sentence names both numbers."""
    with pytest.raises(CorruptImage, match="has 7 bytes; 2 rows of 2 uint16 samples have 8"):
        decode_image(RawPlane(rows=2, columns=2, sample_type="uint16", data=bytes(7)))


@pytest.mark.parametrize(("rows", "columns", "error"), [(0, 1, CorruptImage), (1, 40000, ImageTooLarge)])
def test_a_raw_plane_is_within_the_sides(rows, columns, error, decode_image):
    """Sides of a raw plane obey the limits."""
    with pytest.raises(error):
        decode_image(RawPlane(rows=rows, columns=columns, sample_type="uint8", data=b"x"))


def test_a_policy_of_no_frames_is_refused():
    """An image is made of one frame at least."""
    with pytest.raises(ConfigError, match="1 or more"):
        FramePolicy(count=0)


@pytest.mark.parametrize("count", ["3", 2.5, None, True])
def test_a_policy_of_no_number_of_frames_is_refused(count):
    """What a manifest says is not made into a number."""
    with pytest.raises(ValueError, match="whole number"):
        FramePolicy(count=count)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "auto"},
        {"mode": ["window"]},
        {"low": -1},
        {"high": 100.5},
        {"low": 50, "high": 50},
        {"low": 99, "high": 1},
        {"low": "1"},
        {"high": None},
        {"low": False},
        {"high": float("nan")},
    ],
)
def test_an_intensity_that_stretches_nothing_is_refused(wrong):
    """When it is made, in one sentence, and not by every image that it is for."""
    with pytest.raises(ValueError, match=r"^intensity (mode is|percentiles are) "):
        Intensity(**wrong)


@given(count=st.integers(1, 100), total=st.integers(1, 100_000))
def test_a_frame_policy_chooses_different_frames_in_order(count, total):
    """Indices increase strictly, are in range, and are as many as asked for or as there are."""
    indices = FramePolicy(count=count).indices(total)

    assert len(indices) == min(count, total)
    assert all(a < b for a, b in itertools.pairwise(indices))
    assert 0 <= indices[0] <= indices[-1] < total


# --- from several threads ---


@pytest.fixture
def threads() -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """Two of them, by name."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        yield first, second


def test_threads_that_decode_leave_warnings_as_they_were(make_dicom):
    """Eight threads, sixty images each, with a header to warn of: no filter stays, and nothing is heard."""
    with warnings.catch_warnings(action="ignore"):
        data = make_dicom(RAMP, SpecificCharacterSet="NONSENSE")
    before = list(warnings.filters)
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        for _ in range(60):
            decode(data, intensity=Intensity(), frames=FramePolicy(), limits=Limits())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(run) for _ in range(8)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)

    assert warnings.filters == before


def test_threads_that_overlap_leave_warnings_as_they_were(threads):
    """The one that came first may leave first."""
    before = list(warnings.filters)
    contexts = [translated(), translated()]

    for thread, context in zip(threads, contexts, strict=True):
        thread.submit(context.__enter__).result()
    for thread, context in zip(threads, contexts, strict=True):
        thread.submit(context.__exit__, None, None, None).result()

    assert warnings.filters == before


def test_only_the_thread_that_decodes_is_silenced(threads):
    """What other threads have to say, meanwhile and afterwards, is heard."""
    decoding, other = threads
    context = translated()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        decoding.submit(context.__enter__).result()
        for thread, said in ((decoding, "within"), (other, "meanwhile")):
            thread.submit(warnings.warn, said, stacklevel=1).result()
        decoding.submit(context.__exit__, None, None, None).result()
        decoding.submit(warnings.warn, "afterwards", stacklevel=1).result()

    assert [str(warning.message) for warning in heard] == ["meanwhile", "afterwards"]


def test_a_silence_that_somebody_else_has_saved_is_harmless(threads, recwarn):
    """Filters saved while a thread decodes, and put back when it has ended, silence nobody."""
    decoding, _ = threads
    context = translated()
    decoding.submit(context.__enter__).result()
    with warnings.catch_warnings():
        decoding.submit(context.__exit__, None, None, None).result()
    warnings.warn("afterwards", stacklevel=1)

    assert [str(warning.message) for warning in recwarn.list] == ["afterwards"]
