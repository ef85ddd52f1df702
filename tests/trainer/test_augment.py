"""Augmentation keeps the encoder's input format and changes each image in its own way."""

from __future__ import annotations

import torch

from deepmcat_trainer.augment import CropAndFlip


def batch(n=4, size=32):
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_shape_and_range_are_what_the_encoder_takes():
    """uint8 in, floats from 0 to 1 of the same shape out."""
    changed = CropAndFlip(32, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=0.5)(batch())

    assert changed.shape == (4, 1, 32, 32)
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 1


def test_the_whole_image_unflipped_is_the_image():
    """With the largest crop and no flip nothing happens but the change of scale."""
    images = batch()
    changed = CropAndFlip(32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0)(images)

    assert torch.allclose(changed, images / 255, atol=1e-3)


def test_flip_is_horizontal():
    """A certain flip mirrors left and right, never top and bottom."""
    images = batch()
    changed = CropAndFlip(32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1)(images)

    assert torch.allclose(changed, images.flip(3) / 255, atol=1e-3)


def test_each_image_of_a_batch_is_cropped_in_its_own_way():
    """Four copies of an image come out as four images."""
    changed = CropAndFlip(32, scale=(0.2, 0.5), ratio=(0.75, 4 / 3), flip=0.5)(batch(1).expand(4, -1, -1, -1))

    assert not any(torch.allclose(changed[i], changed[j]) for i in range(4) for j in range(i))


def test_a_seed_repeats_it():
    """All randomness comes from torch's generator."""
    augment = CropAndFlip(32, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=0.5)
    results = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            torch.manual_seed(11)
            results.append(augment(batch()))

    assert torch.equal(*results)
