"""What the GPU benchmark trains on: the same images from a dataset and from the file that travels."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import gpu_images


@pytest.fixture(name="pack")
def pack_fixture():
    """60 images of three classes; of each class 12 fit, 2 calibration, 6 test."""
    rng = np.random.default_rng(0)
    return gpu_images.Pack(
        images=rng.integers(0, 256, size=(60, 16, 16), dtype=np.uint8),
        classes=np.repeat(np.arange(3), 20),
        splits=np.tile(np.repeat(np.arange(3), (12, 2, 6)), 3),
    )


def test_a_pack_comes_back_as_it_was(pack, tmp_path):
    """Pixels, classes and splits."""
    pack.save(tmp_path / "pack.npz")
    read = gpu_images.read(tmp_path / "pack.npz", tmp_path, None, None)

    assert np.array_equal(read.images, pack.images)
    assert np.array_equal(read.classes, pack.classes)
    assert np.array_equal(read.rows("test"), pack.rows("test"))


def test_fewer_images_keep_the_shares_of_classes_and_splits(pack, tmp_path):
    """A third of 60: of each class about 4 to fit and 2 to test."""
    pack.save(tmp_path / "pack.npz")
    read = gpu_images.read(tmp_path / "pack.npz", tmp_path, 20, None)

    assert (len(read.images), read.size, read.count) == (20, 16, 3)
    assert abs(np.bincount(read.classes[read.rows("fit")]) - 4).max() <= 1
    assert abs(np.bincount(read.classes[read.rows("test")]) - 2).max() <= 1


def test_smaller_images_are_means_of_squares(pack, tmp_path):
    """16 pixels become 8, in the order of the pack."""
    pack.save(tmp_path / "pack.npz")
    read = gpu_images.read(tmp_path / "pack.npz", tmp_path, None, 8)

    assert np.array_equal(read.images, pack.images.reshape(60, 8, 2, 8, 2).mean(axis=(2, 4)).round())


def test_a_size_that_does_not_divide_is_a_sentence(pack, tmp_path):
    """16 pixels do not become 5."""
    pack.save(tmp_path / "pack.npz")
    with pytest.raises(SystemExit, match="images of 16 px cannot be averaged to 5 px"):
        gpu_images.read(tmp_path / "pack.npz", tmp_path, None, 5)
