"""Promises about real files: all of pydicom's own corpora are answered as recorded, and every header is read."""

from __future__ import annotations

from tests.conformance import cases, golden
from tests.conformance.answers import answer

from deepmcat_core.header import read_header

# Images whose thumbnails have nothing to see in them, and why.
CONSTANT = {
    "hostile/generated/all_zero_pixels.dcm",
    "hostile/generated/constant_max_pixels.dcm",
    "hostile/generated/dims_1x1_excess_pixels.dcm",  # a single pixel
    # The same light page with a word in a corner, too small for a thumbnail.
    "pydicom/test_files/SC_jpeg_no_color_transform.dcm",
    "pydicom/test_files/SC_rgb_jpeg.dcm",
    "pydicom/test_files/SC_rgb_jpeg_dcmd.dcm",
}


def test_the_public_corpora_are_answered_as_recorded():
    """`make conformance` compares the hostile set too, and what a file costs; this finds out sooner."""
    rows = {case.name: answer(case.data).row for case in cases.public()}
    recorded = {name: row for name, row in golden.read().items() if name.partition("/")[0] in cases.PUBLIC}

    assert [str(difference) for difference in golden.differences(recorded, rows)] == []


def test_there_is_something_to_see_in_every_image():
    """Nothing is recorded that came out as one grey level, but for images that are."""
    rows = golden.read()
    constant = {
        name for name, row in rows.items() for frame in row["thumbnail"].split() if len(set(bytes.fromhex(frame))) == 1
    }

    assert sum(row["status"] == "image" for row in rows.values()) >= 200
    assert constant == CONSTANT


def test_every_header_of_pydicoms_corpora_is_read():
    """Reading a header never raises, and images have a SOP class to show for it."""
    headers = [read_header(case.data) for case in cases.public()]

    assert sum("SOPClass" in header.coded for header in headers) >= 160
    assert sum("Modality" in header.coded for header in headers) >= 150
