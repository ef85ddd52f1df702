"""Features that nobody trained: small pixels, and how strong edges are in each direction and place.

The second is what histograms of oriented gradients hold (Dalal and Triggs 2005), here as a fixed convolution: the
response to an edge in each of DIRECTIONS, its positive part averaged over the cells of a grid, and the root of that,
which keeps one strong edge from drowning the rest.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch.nn import functional as F

from deepmcat_core.backbones.backbone import Backbone

SIDE = 64  # px at which edges are looked for; larger images are brought down to it, smaller ones up
PIXELS = 32  # the side of the small image
DIRECTIONS = 8
GRIDS = (8, 4)  # cells a side
_EPS = 1e-8


class Gradients(Backbone):
    """32² pixels, and 8 directions on grids of 8² and 4² cells: 1664 features in three parts, no weights."""

    parts = (PIXELS**2, *(DIRECTIONS * grid**2 for grid in GRIDS))
    dim = sum(parts)

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(DIRECTIONS) * (2 * math.pi / DIRECTIONS)
        across = torch.zeros(3, 3)
        across[1, 0], across[1, 2] = -1.0, 1.0
        kernels = torch.cos(angles).view(-1, 1, 1) * across + torch.sin(angles).view(-1, 1, 1) * across.T
        self.register_buffer("kernels", kernels[:, None], persistent=False)  # (DIRECTIONS, 1, 3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) → (B, 1664)."""
        small = _resized(images)
        around = F.pad(small, (1, 1, 1, 1), mode="replicate")  # the border of an image is no edge
        edges = F.relu(F.conv2d(around, self.get_buffer("kernels")))  # (B, DIRECTIONS, SIDE, SIDE)
        grids = [torch.sqrt(F.avg_pool2d(edges, SIDE // grid) + _EPS).flatten(1) for grid in GRIDS]
        return torch.cat([F.avg_pool2d(small, SIDE // PIXELS).flatten(1), *grids], dim=1)

    @classmethod
    def pretrained(cls, **options: Any) -> tuple[Self, dict[str, Any]]:
        """The network as it is: it has nothing to load."""
        return cls(**options), options


def _resized(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, SIDE, SIDE): averages of whole pixels, and where S is no multiple of SIDE, between them."""
    factor = int(images.shape[-1]) // SIDE
    smaller = F.avg_pool2d(images, factor) if factor > 1 else images
    if int(smaller.shape[-1]) == SIDE:
        return smaller
    return F.interpolate(smaller, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
