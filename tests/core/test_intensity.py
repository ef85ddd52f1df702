"""Promises of the stretch: numpy's percentiles to the bit, and black only for what has nothing to show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepmcat_core.frame import Frame, Intensity, RawPlane
from deepmcat_core.intensity import deep_frame, extent
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing

PERCENTS = st.tuples(st.floats(0, 100), st.floats(0, 100)).map(lambda pair: (min(pair), max(pair)))
NUMBERS = st.one_of(
    hnp.arrays(np.uint8, st.integers(1, 300)),
    hnp.arrays(np.int32, st.integers(1, 300)),
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e5, 1e5, width=32)),
    hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e300, 1e300)),
)


@settings(max_examples=300, deadline=None)
@given(numbers=NUMBERS, percents=st.one_of(PERCENTS, st.just((1.0, 99.0)), st.just((0, 100))))
def test_ends_are_numpys_percentiles_to_the_bit(numbers, percents):
    """Of bytes and of every other type, whatever the numbers; of none where they coincide."""
    halves = numbers.astype(np.float32 if numbers.dtype.itemsize == 1 else numbers.dtype) * 0.5
    low, high = (2 * float(end) for end in np.percentile(halves, percents))

    ends = extent(numbers, percents)

    assert ends in ((low, high), None, (float(numbers.min()), float(numbers.max())))
    if high - low > 1e-3 * max(abs(low), abs(high)):
        assert ends == (low, high)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", ["constant", "two", "few", "noise", "ramp", "dark"])
@pytest.mark.parametrize("shape", [(32, 32), (32, 20), (9, 50), (1, 1)])
def test_bytes_are_stretched_as_the_numbers_they_are(kind, shape, inverted):
    """A raw plane of bytes is to the bit what the same numbers in single precision are."""
    noise = np.random.default_rng(0).random(shape)
    values = {
        "constant": np.full(shape, 7),
        "two": 100 + 50 * (noise < 0.3),
        "few": 255 * (noise < 0.005),
        "noise": 256 * noise,
        "ramp": np.linspace(0, 255, noise.size).reshape(shape),
        "dark": 20 * noise**4,
    }[kind].astype(np.uint8)
    plane = RawPlane(rows=shape[0], columns=shape[1], sample_type="uint8", data=values.tobytes(), inverted=inverted)

    found = read_planes(plane, ReadOptions(preprocessing=Preprocessing(size=32))).planes[0]

    expected = Preprocessing(size=32).apply(Frame(pixels=values.astype(np.float32), deep=True, inverted=inverted))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(np.float64, 1e6), (np.float64, -1e6), (np.float64, 1e13), (np.float32, 1e6), (np.int32, 2**30), (np.int32, 0)],
)
def test_texture_on_an_offset_is_shown(dtype, offset):
    """As far as the type can tell its numbers apart, they are stretched as they are without the offset."""
    texture = np.add.outer(np.arange(32), np.arange(32)) // 4 / (1 if dtype is np.int32 else 16)  # 0 to 15, or to 1

    seen = Preprocessing(size=32).apply(deep_frame((texture + offset).astype(dtype), Intensity(), wide=True))

    plain = Preprocessing(size=32).apply(deep_frame(texture, Intensity(), wide=True))
    np.testing.assert_allclose(seen, plain, atol=1)


@pytest.mark.parametrize("side", [32, 50])
@pytest.mark.parametrize("value", [1.0, 1234.567, -1e6, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_differs_by_rounding_is_flat(dtype, value, side):
    """A number that was computed in two ways is the same number: neighbours in its type are no picture."""
    values = np.full((side, side), value, dtype=dtype)
    values[::2, 1::3] = np.nextafter(values[0, 0], dtype(np.inf))

    assert not Preprocessing(size=32).apply(deep_frame(values, Intensity(), wide=True)).any()
