"""Promises of preprocessing: always a square of bytes, proportions kept, and the same pixels for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(("height", "width"), [(300, 200), (40, 30)])
def test_deep_numbers_give_the_same_bytes_for_ever(height, width):
    """Golden pixels of what is stretched at the size that is wanted, with padding and something painted over it."""
    rows, columns = np.mgrid[0:height, 0:width]
    known = np.hypot(rows - height / 2, columns - width / 2) < 0.45 * width
    numbers = np.where(known, 1000 * ramp_and_checkers(height, width) - 300, 0).astype(np.float32)
    painted = ((rows < 9) & (columns < 9)).astype(np.float32) / 2
    frame = Frame(pixels=numbers, deep=True, inverted=True, known=known, painted=painted)

    assert GOLDEN[f"deep {height}x{width}"] == digest(Preprocessing(size=128).apply(frame))


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


def deep(numbers: np.ndarray, **options: Any) -> Frame:
    return Frame(pixels=numbers.astype(np.float32), deep=True, **options)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_does_not_decide_the_contrast(noise):
    """What is averaged away does not widen the range that becomes grey."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:1024, 0:1024] / 1024
    picture = 0.5 + 0.3 * np.sin(9 * rows) * np.cos(7 * columns)
    noisy = picture + rng.normal(0, noise, picture.shape)

    clean, seen = (Preprocessing(size=64).apply(deep(numbers)).astype(int) for numbers in (picture, noisy))

    assert np.abs(clean - seen).mean() < 3


@pytest.mark.parametrize("shape", [(9, 9), (9, 200), (200, 9)])
def test_the_range_is_of_numbers_that_there_are(shape):
    """Enlarging makes up none: a bright pixel between others is as bright as it was, in either direction."""
    numbers = np.full(shape, 20.0)
    numbers[shape[0] // 2, shape[1] // 2], numbers[2, 3] = 100, 10
    enlarging = Preprocessing(size=208, intensity=Intensity(low=0, high=100))

    plane = enlarging.apply(deep(numbers))

    np.testing.assert_array_equal(plane, enlarging.apply(Frame(pixels=((numbers - 10) / 90).astype(np.float32))))


@pytest.mark.parametrize("side", [40, 700])
def test_padding_says_nothing(side):
    """Nor does what pixels that are not known are next to: as grey as without padding, and black in proportion."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    known = columns >= 0.5
    numbers = np.where(known, 1000 + 20 * rows, 0)
    how = Preprocessing(size=64)

    plane = how.apply(deep(numbers, known=known)).astype(int)

    assert not plane[:, :31].any()
    np.testing.assert_allclose(plane[:, 34:], how.apply(deep(1000 + 20 * rows))[:, 34:], atol=1)
    cover = how.apply(Frame(pixels=known.astype(np.float32))) / 255
    np.testing.assert_allclose(plane, cover * plane[:, 50:51], atol=1)


def test_what_is_painted_is_as_bright_as_it_is():
    """Over pixels that are not known, whatever the range of the others."""
    painted = np.zeros((256, 256), dtype=np.float32)
    painted[:128] = 0.4
    numbers = np.tile(np.arange(256.0), (256, 1)) * (painted == 0)

    plane = Preprocessing(size=64).apply(deep(numbers, known=painted == 0, painted=painted))

    assert (plane[:31] == 102).all()
    assert plane[33:].min() == 0
    assert plane[33:].max() == 255


def test_inverted_numbers_are_the_negative():
    """The percentiles are counted from the other end."""
    numbers = np.random.default_rng(0).normal(size=(300, 300)) ** 3

    plane = Preprocessing(size=64).apply(deep(numbers))
    negative = Preprocessing(size=64).apply(deep(-numbers, inverted=True))

    np.testing.assert_allclose(plane.astype(int), negative, atol=1)


@pytest.mark.parametrize("value", [0.0, -1000.0, 0.1, 65535.0])
def test_what_is_constant_is_black(value):
    """Under padding too, where means are quotients and so not all the same to the last bit."""
    known = np.random.default_rng(0).random((301, 299)) < 0.3
    for mask in (None, known, np.zeros_like(known)):
        numbers = np.full(known.shape, value) * (1 if mask is None else mask)

        assert not Preprocessing(size=64).apply(deep(numbers, known=mask)).any()


def test_a_manifest_round_trip_keeps_everything():
    """What is recorded in an artifact is what comes back."""
    preprocessing = Preprocessing(size=96, intensity=Intensity(mode="window", low=2, high=98))

    assert preprocessing == Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": 1, "size": 128, "intensity": {}},
        {"version": 2, "size": 8, "intensity": {}},
        {"version": 2, "size": 128, "intensity": {"x": 1}},
    ],
)
def test_a_preprocessing_of_another_release_is_refused(data):
    """Other versions, sizes and keys are not guessed at."""
    with pytest.raises(ArtifactFormat):
        Preprocessing.from_json(data)
