"""Promises of preprocessing: always a square of bytes, proportions kept, and the same pixels for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepmcat_core.errors import ArtifactFormat
from deepmcat_core.frame import Frame, Intensity
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing

GOLDEN = json.loads((Path(__file__).parent / "golden" / "preprocessing.json").read_text())

SYNTHETIC = [
    (height, width, aspect, size)
    for height, width, aspect in [
        (64, 64, 1.0),
        (512, 512, 1.0),
        (300, 200, 1.0),
        (200, 300, 0.5),
        (1000, 30, 2.0),
        (3, 5, 1.0),
    ]
    for size in (64, 128, 224)
]
LOSSLESS = ["693_J2KR.dcm", "emri_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm"]


def ramp_and_checkers(height: int, width: int) -> np.ndarray:
    """(H, W) float32: a diagonal ramp, with a checkerboard of single pixels in one corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = (rows / height + columns / width) / 2
    checkers = (rows + columns) % 2
    return np.where((rows < height / 2) & (columns < width / 2), checkers, ramp).astype(np.float32)


def digest(planes: np.ndarray) -> str:
    """Of shape and bytes."""
    return hashlib.sha256(repr(planes.shape).encode() + planes.tobytes()).hexdigest()[:32]


@pytest.mark.parametrize(("height", "width", "aspect", "size"), SYNTHETIC)
def test_a_version_of_preprocessing_gives_the_same_bytes_for_ever(height, width, aspect, size):
    """Golden pixels: artifacts in use were trained on exactly these; a change here needs a new version."""
    frame = Frame(pixels=ramp_and_checkers(height, width), pixel_aspect=aspect)

    assert GOLDEN[f"{height}x{width} aspect {aspect} to {size}"] == digest(Preprocessing(size=size).apply(frame))


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_give_the_same_bytes_for_ever(name, corpus_bytes):
    """Golden pixels from file to plane, for syntaxes whose decoders must agree to the bit."""
    assert GOLDEN[name] == digest(read_planes(corpus_bytes(name), ReadOptions()).planes)


@settings(max_examples=60, deadline=None)
@given(
    pixels=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(0, 1, width=32)
    ),
    aspect=st.floats(1 / 16, 16),
    size=st.integers(16, 80),
)
def test_any_frame_becomes_a_square_of_bytes(pixels, aspect, size):
    """Whatever the shape and aspect, the plane is (size, size) uint8 and no brighter than the frame."""
    plane = Preprocessing(size=size).apply(Frame(pixels=pixels, pixel_aspect=aspect))

    assert plane.shape == (size, size)
    assert plane.dtype == np.uint8
    assert plane.max() <= np.rint(pixels.max() * 255)


@pytest.mark.parametrize(
    ("shape", "aspect", "expected"),
    [((100, 50), 1.0, (64, 32)), ((50, 100), 1.0, (32, 64)), ((50, 100), 2.0, (64, 64)), ((100, 100), 0.5, (32, 64))],
)
def test_proportions_are_kept_and_the_rest_is_black(shape, aspect, expected):
    """A white frame fills its physical proportions of the square, centred."""
    plane = Preprocessing(size=64).apply(Frame(pixels=np.ones(shape, dtype=np.float32), pixel_aspect=aspect))
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))

    assert (len(rows), len(columns)) == expected
    assert (plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()
    assert abs(rows[0] - (63 - rows[-1])) <= 1
    assert abs(columns[0] - (63 - columns[-1])) <= 1


def test_shrinking_averages_over_all_pixels():
    """A fine checkerboard becomes grey, not a pattern: the filter is antialiased."""
    rows, columns = np.mgrid[0:512, 0:512]
    frame = Frame(pixels=((rows + columns) % 2).astype(np.float32))

    plane = Preprocessing(size=64).apply(frame)

    assert set(np.unique(plane[2:-2, 2:-2])) <= {127, 128}


def test_a_manifest_round_trip_keeps_everything():
    """What is recorded in an artifact is what comes back."""
    preprocessing = Preprocessing(size=96, intensity=Intensity(mode="window", low=2, high=98))

    assert preprocessing == Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": 2, "size": 128, "intensity": {}},
        {"version": 1, "size": 8, "intensity": {}},
        {"version": 1, "size": 128, "intensity": {"x": 1}},
    ],
)
def test_a_preprocessing_of_another_release_is_refused(data):
    """Other versions, sizes and keys are not guessed at."""
    with pytest.raises(ArtifactFormat):
        Preprocessing.from_json(data)
