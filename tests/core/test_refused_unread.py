"""Bombs are refused by what they claim: what would parse or decode them raises in these tests if it is asked.

Each is a file that some other server was brought down with: decompression bombs, lengths and sizes that are lies,
products that overflow 32 bits, values of another type than the standard's, indices out of their table.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFile
from pydicom.pixels.decoders.base import Decoder, DecodeRunner
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from deepmcat_core import dicom_file
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.errors import CorruptImage, ImageError, ImageTooLarge
from deepmcat_core.frame import Limits
from deepmcat_core.header import Header, read_header
from deepmcat_core.planes import ReadOptions, read_planes

STEPS = np.arange(64, dtype=np.uint8).reshape(8, 8)
PIXEL_DATA = b"\xe0\x7f\x10\x00"


class Reached(BaseException):
    """Work was begun on what should have been refused. No Exception, so that nothing translates it."""


def _reached(*_: object, **__: object) -> None:
    raise Reached


@pytest.fixture(name="unparsed")
def unparsed_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom's parser, and all that follows it, may not be reached."""
    monkeypatch.setattr(dicom_file, "SparseDataset", _reached)


@pytest.fixture(name="undecoded")
def undecoded_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pydicom's decoders nor Pillow's may be reached."""
    monkeypatch.setattr(Decoder, "_as_array_native", _reached)
    monkeypatch.setattr(DecodeRunner, "decode", _reached)
    monkeypatch.setattr(ImageFile.ImageFile, "load", _reached)


@pytest.fixture(scope="module", name="small_pool")
def small_pool_fixture() -> Iterator[DecodePool]:
    """A worker with 192 MiB to read an image in."""
    with DecodePool(1, WorkerLimits(memory_bytes=192 * 2**20)) as pool:
        yield pool


def spliced(data: bytes, elements: bytes) -> bytes:
    """A file with more elements before its pixel data."""
    at = data.index(PIXEL_DATA)
    return data[:at] + elements + data[at:]


def nested(depth: int, order: str = "<", vr: bytes = b"SQ\0\0") -> bytes:
    """Sequences of undefined length within sequences, never ended."""
    tags = struct.pack(order + "HH", 0x0040, 0x0275), struct.pack(order + "HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return (tags[0] + vr + b"\xff" * 4 + tags[1]) * depth


def deflated(make_dicom: Callable[..., bytes], zeros: int) -> bytes:
    """A deflated object that inflates to so many zeros."""
    whole = make_dicom(STEPS, syntax=DeflatedExplicitVRLittleEndian)
    end = whole.index(b"\x02\x00\x13\x00")  # the last element of its file meta group
    end += 8 + struct.unpack_from("<H", whole, end + 6)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return whole[:end] + packer.compress(bytes(zeros)) + packer.flush()


@pytest.mark.usefixtures("unparsed")
def test_the_tripwire_of_the_parser_works(make_dicom, decode_image):
    """A good file reaches it."""
    with pytest.raises(Reached):
        decode_image(make_dicom(STEPS))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless])
def test_the_tripwires_of_the_decoders_work(syntax, make_dicom, decode_image):
    """Good files reach them, whatever their syntax."""
    encoded = {
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(STEPS, codecformat="j2k", reversible=True),
        JPEGBaseline8Bit: lambda: imagecodecs.jpeg8_encode(STEPS),
        RLELossless: lambda: struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x07",
    }.get(syntax)
    with pytest.raises(Reached):
        decode_image(make_dicom(STEPS, syntax=syntax, encoded=[encoded()] if encoded else None))


@pytest.mark.usefixtures("unparsed")
def test_a_deflate_bomb_is_refused_before_it_is_parsed(make_dicom, decode_image):
    """For its header alone, too: a reader of headers must not be the way around the limit."""
    bomb = deflated(make_dicom, 2**27)

    with pytest.raises(ImageTooLarge, match="inflates to more than"):
        decode_image(bomb)
    assert len(bomb) < 2**18
    assert read_header(bomb) == Header()


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("depth", [33, 20_000])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_deep_nesting_is_refused_before_it_is_parsed(depth, syntax, make_dicom, decode_image):
    """In every encoding, and for a header alone."""
    data = make_dicom(STEPS, syntax=syntax)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    at = data.index(struct.pack(order + "HH", 0x7FE0, 0x0010))
    bomb = data[:at] + nested(depth, order, b"" if syntax == ImplicitVRLittleEndian else b"SQ\0\0") + data[at:]

    with pytest.raises(ImageTooLarge, match="nests sequences deeper than 32"):
        decode_image(bomb)
    assert read_header(bomb) == Header()


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("where", ["data set", "items", "file meta group"])
def test_elements_without_number_are_refused_before_they_are_parsed(where, make_dicom, decode_image):
    """In the data set, as items of one sequence, or in the file meta group, which is walked before all else."""
    data, limit = make_dicom(STEPS), Limits().max_elements
    empty = {
        "data set": b"\x40\x00\x00\x10SH\0\0" * (limit + 1),
        "items": b"\x40\x00\x75\x02SQ\0\0"
        + struct.pack("<L", 8 * (limit + 1))
        + b"\xfe\xff\x00\xe0\0\0\0\0" * (limit + 1),
        "file meta group": b"\x02\x00\x16\x00AE\0\0" * (limit + 1),
    }[where]
    bomb = data[:132] + empty + data[132:] if where == "file meta group" else spliced(data, empty)

    with pytest.raises(ImageTooLarge, match=f"more than {limit} elements"):
        decode_image(bomb)


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("frames", [50_000, 2**31 - 1])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless])
def test_claimed_frames_are_refused_before_any_is_decoded(frames, syntax, make_dicom, decode_image):
    """50,000 frames over the bytes of one would be 24 GiB if believed."""
    encoded = None if syntax == ExplicitVRLittleEndian else [imagecodecs.jpeg8_encode(STEPS)]

    with pytest.raises(CorruptImage):
        decode_image(make_dicom(STEPS, syntax=syntax, encoded=encoded, NumberOfFrames=frames))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    "attributes",
    [
        {"Rows": 65535, "Columns": 65535},  # their product overflows 32 bits, signed and unsigned
        {"Rows": 46341, "Columns": 46341},  # … and this one is just over 2**31
        {"Rows": 32768, "Columns": 32768, "BitsAllocated": 32},  # 4 GiB, which is 0 in 32 bits
        {"Rows": 32768, "Columns": 32768, "SamplesPerPixel": 3, "NumberOfFrames": 3},
    ],
)
def test_sizes_that_overflow_are_refused_unread(attributes, make_dicom, decode_image):
    """Numbers are Python's: no product of them wraps around into something small."""
    with pytest.raises(ImageTooLarge):
        decode_image(make_dicom(STEPS, **attributes))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("rows", [2**20, 2**32 - 1, 0])
def test_rows_of_four_bytes_are_refused_unread(rows, make_dicom, decode_image):
    """UL in place of US: the value is taken as it is, and is over the limit or none."""
    data = make_dicom(STEPS)
    short = b"\x28\x00\x10\x00US\x02\x00\x08\x00"
    assert data.count(short) == 1

    with pytest.raises((ImageTooLarge, CorruptImage), match="rows"):
        decode_image(data.replace(short, b"\x28\x00\x10\x00UL\x04\x00" + struct.pack("<L", rows)))


@pytest.mark.parametrize("length", [0xFFFFFFF0, 0x7FFFFFFF, 0xFFFFFFFE])
@pytest.mark.parametrize("tag", [PIXEL_DATA, b"\x10\x00\x10\x40", b"\x28\x00\x01\x12"])
def test_claimed_lengths_are_not_allocated(tag, length, small_pool, make_dicom):
    """Of pixel data, of a text and of a palette: four gigabytes claimed over eight bytes."""
    data = make_dicom(STEPS)
    before, restarts = data[: data.index(PIXEL_DATA)], small_pool.restarts
    lie = before + tag + b"OB\0\0" + struct.pack("<L", length) + bytes(8)

    with pytest.raises(CorruptImage):
        small_pool.submit(lie, ReadOptions()).result()
    assert small_pool.restarts == restarts


def test_indices_out_of_a_palette_are_its_last_entry(make_dicom, grey_of):
    """No index reads what lies behind the table."""
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [4, 0, 8]), ("Data", bytes([0, 85, 170, 255])))
    }
    values = np.array([[0, 3, 4], [5, 200, 255]], dtype=np.uint8)

    found = grey_of(make_dicom(values, PhotometricInterpretation="PALETTE COLOR", **palette))

    np.testing.assert_allclose(found, [[0, 1, 1], [1, 1, 1]], atol=1e-6)


def test_a_palette_that_claims_more_than_it_has_ends_where_it_ends(make_dicom, grey_of):
    """65,536 entries claimed, two there."""
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [0, 0, 8]), ("Data", bytes([0, 255])))
    }
    values = np.array([[0, 1, 255]], dtype=np.uint8)

    found = grey_of(make_dicom(values, PhotometricInterpretation="PALETTE COLOR", **palette))

    np.testing.assert_allclose(found, [[0, 1, 1]], atol=1e-6)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    """A small PNG with more chunks before its pixels."""
    file = io.BytesIO()
    PillowImage.fromarray(STEPS).save(file, format="PNG")
    data = file.getvalue()
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


BOMB = zlib.compress(bytes(2**28), 9)  # 256 MiB in 256 KiB

PNG_BOMBS = {
    "zTXt": [chunk(b"zTXt", b"Comment\0\0" + BOMB)],
    "iTXt": [chunk(b"iTXt", b"Comment\0\x01\0\0\0" + BOMB)],
    "iCCP": [chunk(b"iCCP", b"profile\0\0" + BOMB)],
    "many zTXt": [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1), 9))] * 300,
    "IDAT": [chunk(b"IDAT", BOMB)],
}


@pytest.mark.parametrize("chunks", PNG_BOMBS.values(), ids=PNG_BOMBS)
def test_chunks_of_a_png_do_not_explode(chunks, small_pool):
    """Text, profiles and pixels that inflate to 256 MiB: an answer from a worker that has less than that."""
    restarts = small_pool.restarts
    error = small_pool.submit(png_with(*chunks), ReadOptions()).exception()

    assert error is None or isinstance(error, ImageError)
    assert "memory" not in str(error)
    assert small_pool.restarts == restarts


def tiff(width: int, height: int, strips: int, offsets: bytes, counts: bytes) -> bytes:
    """A grey TIFF of strips of one row."""
    start = 8 + 2 + 8 * 12 + 4
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, strips, start), (278, 4, 1, 1), (279, 4, strips, start + len(offsets)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<L", 8) + directory + offsets + counts


TIFF_BOMBS = {
    "a million strips of no pixels": tiff(8, 8, 10**6, bytes(4 * 10**6), bytes(4 * 10**6)),
    "a strip a row, all at the same place": tiff(
        1, 32768, 32768, struct.pack("<L", 8) * 32768, struct.pack("<L", 1) * 32768
    ),
    "strips that are not there": tiff(32768, 32000, 32000, b"\xff" * 4 * 32000, struct.pack("<L", 32768) * 32000),
    "four billion strips claimed": tiff(8, 8, 2**32 - 1, bytes(64), bytes(64)),
}


@pytest.mark.parametrize("data", TIFF_BOMBS.values(), ids=TIFF_BOMBS)
def test_strips_of_a_tiff_do_not_explode(data, small_pool):
    """Strips without number, all over the file or outside of it: an answer within a worker's memory."""
    restarts = small_pool.restarts
    error = small_pool.submit(data, ReadOptions()).exception()

    assert error is None or isinstance(error, ImageError)
    assert small_pool.restarts == restarts


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "tripwire"),
    [
        ("deflate_bomb_160MB", "unparsed"),
        ("sq_undefined_depth_20000_unterminated", "unparsed"),
        ("sq_depth_900", "unparsed"),
        ("huge_dims_small_pixels", "undecoded"),
        ("frames_maxint", "undecoded"),
        ("pixeldata_len_4g", "undecoded"),
    ],
)
def test_bombs_of_the_hostile_set_are_refused_unread(name, tripwire, data_dir: Path, request: pytest.FixtureRequest):
    """Files that others made for the purpose."""
    path = data_dir / "hostile" / "generated" / f"{name}.dcm"
    if not path.exists():
        pytest.skip("DEEPMCAT_DATA has no hostile/ (docs/data.md)")
    data = path.read_bytes()
    request.getfixturevalue(tripwire)

    with pytest.raises(ImageError):
        read_planes(data, ReadOptions())


@pytest.mark.usefixtures("undecoded")
def test_more_fragments_than_elements_are_allowed_are_refused(make_dicom, decode_image):
    """Empty ones are eight bytes each; finding where they are is work, too."""
    fragments = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 1002
    data = make_dicom(STEPS, syntax=RLELossless, PixelData=fragments)
    with pytest.raises(ImageTooLarge, match="more than 1000 elements"):
        decode_image(data, limits=Limits(max_elements=1000))


@pytest.mark.parametrize("keyword", ["RescaleSlope", "PixelSpacing", "WindowCenter"])
def test_a_million_values_where_one_is_wanted_are_not_converted(keyword, make_dicom, decode_image, monkeypatch):
    """Such an element counts as absent, as one does that cannot be read."""
    plain = make_dicom(STEPS, syntax=ImplicitVRLittleEndian)
    tag = {"RescaleSlope": (0x28, 0x1053), "PixelSpacing": (0x28, 0x30), "WindowCenter": (0x28, 0x1050)}[keyword]
    value = b"2\\" * 2**19
    long = spliced(plain, struct.pack("<HHL", *tag, len(value)) + value)
    monkeypatch.setattr("pydicom.valuerep.DSfloat.__init__", _reached)

    found, expected = (decode_image(data, mode="window") for data in (long, plain))
    np.testing.assert_array_equal(found.frames[0].pixels, expected.frames[0].pixels)
