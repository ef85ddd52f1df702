"""Promises about real files: all of pydicom's own corpora are answered, and hostile files as they deserve."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deepmcat_core.errors import ImageError
from deepmcat_core.header import read_header
from deepmcat_core.planes import ReadOptions, read_planes

# Of those that look like images, what cannot be decoded, and why; pydicom's tests use them as examples of damage.
KNOWN_FAILURES = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "CORRUPT_IMAGE",  # the codestream's size is overwritten
    "MR_truncated.dcm": "CORRUPT_IMAGE",
    "badVR.dcm": "CORRUPT_IMAGE",  # Number of Frames is "1A"
    "emri_small_jpeg_2k_lossless_too_short.dcm": "CORRUPT_IMAGE",
    "meta_missing_tsyntax.dcm": "CORRUPT_IMAGE",  # no SOP class
    "nested_priv_SQ.dcm": "CORRUPT_IMAGE",  # no SOP class
    "no_meta.dcm": "UNSUPPORTED_IMAGE",  # starts in the middle of an element
}

# Images with nothing to see in them, and why; every plane of every other image has more than one grey level.
CONSTANT = {
    "all_zero_pixels.dcm",
    "constant_max_pixels.dcm",
    "dims_1x1_excess_pixels.dcm",  # a single pixel
    "rescale_overflow.dcm",  # no value is finite after its slope
}


def _outcome(path: Path) -> str:
    """IMAGE, or the reason of the error. Anything but an ImageError is the test's failure."""
    try:
        planes = read_planes(path.read_bytes(), ReadOptions())
    except ImageError as error:
        return error.reason
    assert planes.planes.shape == (len(planes.frame_indices), 128, 128)
    assert planes.planes.dtype == np.uint8
    constant = [plane.min() == plane.max() for plane in planes.planes]
    assert all(constant) if path.name in CONSTANT else not any(constant), path.name
    return "IMAGE"


def test_every_file_of_pydicoms_corpora_is_answered(corpus):
    """Files decode, or are said not to be images, or fail as is known; at least as many decode as do today."""
    outcomes = {path: _outcome(path) for path in corpus}
    counts = Counter(outcomes.values())
    failures = {
        path.name: outcome
        for path, outcome in outcomes.items()
        if outcome not in ("IMAGE", "NOT_AN_IMAGE") and path.suffix in ("", ".dcm") and "README" not in path.name
    }

    assert counts["IMAGE"] >= 155, counts
    assert counts["NOT_AN_IMAGE"] >= 70, counts
    assert failures == KNOWN_FAILURES


def test_every_header_of_pydicoms_corpora_is_read(corpus):
    """Reading a header never raises, and images have a SOP class to show for it."""
    headers = [read_header(path.read_bytes()) for path in corpus]

    assert sum("SOPClass" in header.coded for header in headers) >= 160
    assert sum("Modality" in header.coded for header in headers) >= 150


@pytest.mark.data
def test_hostile_files_get_the_answer_they_deserve():
    """Each of the set's files has an expected outcome in its manifest, and gets it."""
    if "DEEPMCAT_DATA" not in os.environ:
        pytest.skip("DEEPMCAT_DATA is not set: it names the folder that holds hostile/")
    root = Path(os.environ["DEEPMCAT_DATA"]) / "hostile"
    with (root / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))

    wrong = {
        row["path"]: (row["expect"], outcome)
        for row in rows
        if not _expected(row["expect"], outcome := _outcome(root / row["path"]))
    }

    assert wrong == {}


def _expected(expect: str, outcome: str) -> bool:
    match expect:
        case "image_or_error":
            return True
        case "image":
            return outcome == "IMAGE"
        case "any_error" | "not_an_image_or_error":
            return outcome != "IMAGE"
        case reasons:
            return outcome in reasons.split("|")
