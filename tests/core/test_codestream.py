"""What a compressed frame says of itself, also where other bytes stand around it."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from deepmcat_core.codestream import read_codestream
from deepmcat_core.errors import ImageError
from deepmcat_core.planes import ReadOptions, read_planes

PICTURE = np.add.outer(np.arange(64), 3 * np.arange(64)).astype(np.uint8)
SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
MARK = b"\xff\x4f\xff\x51"  # that a JPEG 2000 codestream begins with


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", 8 + len(content)) + kind + content


def rle(plane: np.ndarray) -> bytes:
    """A frame of one segment of literal runs (PS3.5 G.3)."""
    runs = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in plane)
    return struct.pack("<16L", 1, 64, *[0] * 14) + runs + b"\0" * (len(runs) % 2)


def test_a_jp2_file_is_looked_into_by_its_boxes():
    """Bytes in another box that look like a codestream are none, and the codestream may be far behind."""
    stream = imagecodecs.jpeg2k_encode(PICTURE, codecformat="j2k", level=0)
    decoy = MARK + bytes(100)
    file = SIGNATURE + box(b"uuid", bytes(16) + decoy + bytes(9000)) + struct.pack(">L4s", 0, b"jp2c") + stream

    found = read_codestream(file)

    assert found is not None
    assert found.size == (64, 64, 1)
    assert file[found.start :] == stream


@pytest.mark.parametrize("stray", [b"\x31", b"\x31\x32\x33", b"\xff\x00"])
def test_stray_bytes_do_not_hide_the_size_of_a_jpeg(stray):
    """Decoders pass over them, so the size must be found, and compared, all the same."""
    stream = imagecodecs.jpeg_encode(np.zeros((48, 40), dtype=np.uint8))

    found = read_codestream(stream[:2] + stray + stream[2:])

    assert found is not None
    assert found.size == (48, 40, 1)


@pytest.mark.parametrize("frame", [b"", b"\xff\xd8", b"\xff\xd8\x31", SIGNATURE, SIGNATURE + box(b"jp2h", b""), MARK])
def test_what_says_nothing_is_told_so(frame):
    """A frame that ends before it has said anything."""
    assert read_codestream(frame) is None


def test_pixels_that_look_like_a_codestream_are_pixels(make_dicom):
    """Four bytes of a run-length encoded frame may be what JPEG 2000 begins with."""
    plane = PICTURE.copy()
    plane[20, 10:14] = np.frombuffer(MARK, np.uint8)

    encoded = read_planes(make_dicom(plane, syntax=RLELossless, encoded=[rle(plane)]), ReadOptions())

    np.testing.assert_array_equal(encoded.planes, read_planes(make_dicom(plane), ReadOptions()).planes)


def test_a_lie_in_a_box_is_refused_before_it_is_decoded(make_dicom, monkeypatch):
    """The codestream is larger than the header says; a decoy of the right size before it changes nothing."""
    large = imagecodecs.jpeg2k_encode(np.zeros((512, 512), dtype=np.uint8), codecformat="j2k", level=0)
    small = imagecodecs.jpeg2k_encode(PICTURE, codecformat="j2k", level=0)
    file = SIGNATURE + box(b"uuid", bytes(16) + small) + struct.pack(">L4s", 0, b"jp2c") + large
    monkeypatch.setattr("deepmcat_core.pixel_data.get_decoder", None)  # nobody gets as far as that

    with pytest.raises(ImageError, match="not of the size"):
        read_planes(make_dicom(PICTURE, syntax=JPEG2000Lossless, encoded=[file]), ReadOptions())
