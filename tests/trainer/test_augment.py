"""Augmentation keeps the encoder's input format and changes each image in its own way."""

from __future__ import annotations

import pytest
import torch

from deepmcat_trainer.augment import STRENGTHS, CropAndFlip, Views


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


def views(augmentation, images, n=2, seed=3, flip=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Views(augmentation, flip=flip).of(images, n)


@pytest.mark.parametrize("augmentation", STRENGTHS)
def test_views_are_what_the_encoder_takes(augmentation):
    """Floats from 0 to 1, all first views before all second ones, each its own, and a seed repeats them."""
    made = views(augmentation, batch(3))

    assert (made.shape, made.dtype) == ((6, 1, 32, 32), torch.float32)
    assert 0 <= made.min() <= made.max() <= 1
    assert not any(torch.allclose(made[i], made[j]) for i in range(6) for j in range(i))
    assert torch.equal(made, views(augmentation, batch(3)))
    assert not torch.equal(made, views(augmentation, batch(3), seed=4))


def test_stronger_views_are_further_from_the_image():
    """On a smooth image, mild changes less than strong."""
    ramp = torch.linspace(0, 255, 32).expand(64, 1, 32, 32).to(torch.uint8)
    distances = [(views(name, ramp, 1) - ramp / 255).square().mean() for name in ("mild", "strong")]

    assert distances[0] < distances[1]


def test_no_view_is_mirrored_unless_asked_for():
    """Left stays left: of an image bright on the right every view is; a certain flip mirrors just that."""
    ramp = torch.linspace(0, 255, 32).expand(16, 1, 32, 32).to(torch.uint8)
    for name in STRENGTHS:
        made = views(name, ramp)
        assert (made[..., 16:].mean(dim=(1, 2, 3)) > made[..., :16].mean(dim=(1, 2, 3))).all()

    assert torch.allclose(views("crops", ramp, flip=1.0), views("crops", ramp).flip(3), atol=1e-5)
