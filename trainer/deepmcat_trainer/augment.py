"""Augmentation, on the batch and on its device: each image changed in its own way. Training only.

Everything draws from torch's global generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import kornia.augmentation
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Augmentation = Literal["crops", "mild", "strong"]


class CropAndFlip(nn.Module):
    """RandomResizedCrop and a horizontal flip: (B, 1, S, S) uint8 to float32 from 0 to 1, as `Encoder.features` takes.

    What DeepCluster's reference does.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How much is changed. area: share of it that a crop has, at least. degrees: of rotation, either way.

    gamma: largest exponent, and smallest its inverse. contrast, brightness: largest change. noise: largest standard
    deviation. All for grey values from 0 to 1.
    """

    area: float
    degrees: float = 0.0
    gamma: float = 1.0
    contrast: float = 0.0
    brightness: float = 0.0
    noise: float = 0.0


STRENGTHS: dict[Augmentation, Strength] = {
    "crops": Strength(area=0.35),
    "mild": Strength(area=0.6, degrees=6, gamma=1.25, contrast=0.15, brightness=0.08, noise=0.02),
    "strong": Strength(area=0.35, degrees=12, gamma=1.6, contrast=0.3, brightness=0.15, noise=0.05),
}
"""Crops as small as those of natural images (.08) are too strong: a tenth of a radiograph can be of any body part."""

RATIO = 1.18  # largest width of a crop over its height, and smallest its inverse


class Views:
    """Random views for medical images: crop, a little rotation, grey values as another scanner would give them.

    No mirror image unless asked for, because left and right are not the same thing. One resampling does crop, rotation
    and mirror, so that it costs little on a GPU.
    """

    def __init__(self, augmentation: Augmentation, *, flip: float = 0.0) -> None:
        """flip: probability of a horizontal mirror image."""
        self.strength = STRENGTHS[augmentation]
        self.flip = flip

    @torch.no_grad()
    def of(self, images: Tensor, views: int) -> Tensor:
        """`views` views of each of the images (B, 1, S, S) uint8: (views · B, 1, S, S) float32 from 0 to 1.

        All first views come first, then all second ones.
        """
        pixels = (images.float() / 255).repeat(views, 1, 1, 1)
        return self._greys(self._moved(pixels)).clamp(0, 1)

    def _moved(self, pixels: Tensor) -> Tensor:
        """Crop, rotation and mirror image: black comes in from outside."""
        n, device = len(pixels), pixels.device
        area = _uniform(n, self.strength.area, 1, device)
        ratio = _uniform(n, -math.log(RATIO), math.log(RATIO), device).exp()
        width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        x = _uniform(n, -1, 1, device) * (1 - width)
        y = _uniform(n, -1, 1, device) * (1 - height)
        angle = _uniform(n, -1, 1, device) * math.radians(self.strength.degrees)
        mirror = 1 - 2 * (torch.rand(n, device=device) < self.flip).float()
        cos, sin = angle.cos(), angle.sin()
        rows = [cos * width * mirror, -sin * height, x, sin * width * mirror, cos * height, y]
        grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _greys(self, pixels: Tensor) -> Tensor:
        n, device, strength = len(pixels), pixels.device, self.strength
        gamma = _uniform(n, -math.log(strength.gamma), math.log(strength.gamma), device).exp()
        contrast = 1 + _uniform(n, -strength.contrast, strength.contrast, device)
        brightness = _uniform(n, -strength.brightness, strength.brightness, device)
        noise = _uniform(n, 0, strength.noise, device)
        gamma, contrast, brightness, noise = (value.view(-1, 1, 1, 1) for value in (gamma, contrast, brightness, noise))
        pixels = pixels.clamp_min(1e-6) ** gamma  # 0 has no slope
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        return (pixels - mean) * contrast + mean + brightness + noise * torch.randn_like(pixels)


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(n, device=device)
