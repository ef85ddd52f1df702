"""ResNet-18 for one channel (He et al. 2016)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.backbones.pooling import Pool, cells, pooled
from deepmcat_core.backbones.sobel import Sobel
from deepmcat_core.errors import ConfigError

WIDTHS = (64, 128, 256, 512)


class ResNet18(Backbone):
    """Four stages of two blocks, globally average pooled: 512 features, 11 million parameters.

    stem: "7x7" quarters the grid at once, as in the paper; "3x3" keeps it, for images of up to about 64 px. pool: see
    pooling.py; "grid2" gives 2048 features. sobel: whether the stem sees gradients in place of grey values.
    """

    def __init__(self, stem: Literal["7x7", "3x3"] = "7x7", pool: Pool = "average", sobel: bool = False) -> None:
        super().__init__()
        if stem not in ("7x7", "3x3"):
            raise ConfigError(f"stem is {stem!r}; '7x7' and '3x3' are the stems of resnet18")
        self.pool = pool
        self.dim = WIDTHS[-1] * cells(pool)
        self.gradients = Sobel() if sobel else nn.Identity()
        channels = 2 if sobel else 1
        self.stem = _large_stem(channels) if stem == "7x7" else _small_stem(channels)
        self.stages = nn.Sequential(
            *(_stage(before, width) for before, width in zip((64, *WIDTHS), WIDTHS, strict=False))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) → (B, dim)."""
        maps = self.stages(self.stem(self.gradients(images)))  # (B, 512, S/32, S/32), with the small stem (…, S/8, S/8)
        return pooled(maps, self.pool)


class Block(nn.Module):
    """Two 3×3 convolutions and a way around them."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.around = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, before, H, W) → (B, width, H/stride, W/stride)."""
        return torch.relu(self.convolutions(maps) + self.around(maps))


def _stage(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(Block(before, width, 1 if before == width else 2), Block(width, width, 1))


def _large_stem(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, WIDTHS[0], 7, stride=2, padding=3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))


def _small_stem(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True))
