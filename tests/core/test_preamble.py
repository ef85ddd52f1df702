"""Programs in the preamble of a DICOM file are seen, flagged, and change nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deepmcat_core.frame import ImageFlag
from deepmcat_core.preamble import hides_program

PROGRAMS = {
    "dos": b"MZ\x90\0",
    "elf": b"\x7fELF\x02\x01",
    "mach-o 32": b"\xfe\xed\xfa\xce",
    "mach-o 32, swapped": b"\xce\xfa\xed\xfe",
    "mach-o 64": b"\xfe\xed\xfa\xcf",
    "mach-o 64, swapped": b"\xcf\xfa\xed\xfe",
    "universal": b"\xca\xfe\xba\xbe",
    "universal, swapped": b"\xbe\xba\xfe\xca",
    "universal 64": b"\xca\xfe\xba\xbf",
    "universal 64, swapped": b"\xbf\xba\xfe\xca",
    "script": b"#!/bin/sh\n",
}
HARMLESS = {
    "zeros": b"",
    "tiff, little endian": b"II*\0",
    "tiff, big endian": b"MM\0*",
    "bigtiff": b"II+\0",
    "not at the start": b"\0MZ",
    "text": b"a note of the archive",
}


def with_preamble(data: bytes, start: bytes) -> bytes:
    """A DICOM file with another preamble."""
    return start.ljust(128, b"\0") + data[128:]


@pytest.mark.parametrize("start", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_in_the_preamble_is_flagged(start, make_dicom, decode_image):
    """The image is read all the same, to the same pixels."""
    plain = make_dicom(np.arange(64, dtype=np.uint8).reshape(8, 8))
    data = with_preamble(plain, start)
    image, expected = decode_image(data), decode_image(plain)

    assert hides_program(data)
    assert image.flags == expected.flags | {ImageFlag.PREAMBLE_EXECUTABLE}
    np.testing.assert_array_equal(image.frames[0].pixels, expected.frames[0].pixels)


@pytest.mark.parametrize("start", HARMLESS.values(), ids=HARMLESS)
def test_other_preambles_are_not(start, make_dicom, decode_image):
    """Least of all the header of a TIFF, which the preamble was made for."""
    data = with_preamble(make_dicom(np.eye(8, dtype=np.uint8)), start)

    assert not hides_program(data)
    assert ImageFlag.PREAMBLE_EXECUTABLE not in decode_image(data).flags


def test_a_file_without_preamble_hides_nothing(make_dicom):
    """What starts like a program and is not DICOM is none of our business; nor is a bare data set."""
    assert not hides_program(b"MZ" + bytes(1000))
    assert not hides_program(make_dicom(np.eye(8, dtype=np.uint8), bare=True))
    assert not hides_program(b"")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "hides"),
    [("pe_polyglot_preamble_benign", True), ("sh_polyglot_preamble", True), ("tiff_dual_personality", False)],
)
def test_polyglots_of_the_hostile_set(name, hides):
    """Files that are two things at once, made to be found."""
    if "DEEPMCAT_DATA" not in os.environ:
        pytest.skip("DEEPMCAT_DATA is not set: it names the folder that holds hostile/")
    path = Path(os.environ["DEEPMCAT_DATA"]) / "hostile" / "generated" / f"{name}.dcm"

    assert hides_program(path.read_bytes()) is hides
