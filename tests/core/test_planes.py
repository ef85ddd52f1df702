"""Promises of read_planes: one call from bytes to what the encoder takes, and nothing raised but ImageError."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from deepmcat_core.decoding import decode
from deepmcat_core.errors import ImageError
from deepmcat_core.frame import FramePolicy, ImageFlag, Intensity, Limits
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing


def test_planes_are_the_frames_of_the_policy_preprocessed(make_dicom):
    """In the order of the frames, with what is known about the image beside them."""
    frames = np.random.default_rng(0).integers(0, 4000, (5, 9, 7)).astype(np.uint16)
    options = ReadOptions(preprocessing=Preprocessing(size=32), frames=FramePolicy(count=2))
    data = make_dicom(frames, frames=5, BurnedInAnnotation="YES")

    planes = read_planes(data, options)

    image = decode(data, intensity=Intensity(), frames=FramePolicy(count=2), limits=Limits())
    expected = [options.preprocessing.apply(frame) for frame in image.frames]
    np.testing.assert_array_equal(planes.planes, expected)
    assert (planes.frame_indices, planes.total_frames, planes.format) == ((1, 3), 5, "dicom")
    assert planes.decoder.startswith("pydicom ")
    assert planes.flags == {ImageFlag.BURNED_IN_TEXT_POSSIBLE}


def test_the_intensity_is_that_of_the_preprocessing(make_dicom):
    """What an artifact records is what decides the pixels."""
    data = make_dicom(np.arange(64, dtype=np.uint16).reshape(8, 8), WindowCenter=4, WindowWidth=2)
    by_window = Preprocessing(size=16, intensity=Intensity(mode="window"))

    stretched = read_planes(data, ReadOptions(preprocessing=Preprocessing(size=16))).planes
    windowed = read_planes(data, ReadOptions(preprocessing=by_window)).planes

    assert windowed.mean() > stretched.mean() + 50


def test_options_and_planes_travel_between_processes(make_dicom):
    """Both survive pickling, unchanged."""
    options = ReadOptions(preprocessing=Preprocessing(size=16), limits=Limits(max_side=99))
    planes = read_planes(make_dicom(np.eye(4, dtype=np.uint8)), options)

    assert pickle.loads(pickle.dumps(options)) == options
    assert (pickle.loads(pickle.dumps(planes)).planes == planes.planes).all()


def test_errors_travel_between_processes():
    """With their class, reason and sentence."""
    with pytest.raises(ImageError) as caught:
        read_planes(b"", ReadOptions())
    copy = pickle.loads(pickle.dumps(caught.value))

    assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))
