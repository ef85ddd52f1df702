"""Augmentation, on the batch: crops of random size and place, and mirror images. Training only."""

from __future__ import annotations

import kornia.augmentation
import torch
from torch import Tensor, nn


class CropAndFlip(nn.Module):
    """RandomResizedCrop and a horizontal flip: (B, 1, S, S) uint8 to float32 from 0 to 1, as `Encoder.features` takes.

    Draws from torch's global generator.
    """

    def __init__(self, size: int, *, scale: tuple[float, float], ratio: tuple[float, float], flip: float) -> None:
        """size: S. scale: share of the area that a crop has. ratio: its width over its height. flip: probability."""
        super().__init__()
        self.crop = kornia.augmentation.RandomResizedCrop((size, size), scale=scale, ratio=ratio)
        self.flip = kornia.augmentation.RandomHorizontalFlip(p=flip)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The images, each changed in its own way."""
        changed: Tensor = self.flip(self.crop(images.float() / 255))
        return changed.clamp(0, 1)
