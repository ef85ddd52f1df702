"""VGG on Sobel gradients, as DeepCluster uses it, and a small one of the same build for a CPU.

Written from the papers (Simonyan and Zisserman 2015, configuration D; Caron et al. 2018) and the published description
of DeepCluster's network. A convolution has no bias: the batch norm behind it would subtract it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.backbones.sobel import Sobel

POOL = 0  # in a list of widths: halve the grid

VGG16 = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL)
SMALL = (32, POOL, 64, POOL, 128, POOL, 128)


class VggSobel(Backbone):
    """Sobel → convolutions with batch norm → a fixed grid → two fully connected layers.

    The features are the second layer's output before any ReLU: what DeepCluster clusters. Its classifier sees
    `relu(features)`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        stride: int = 1,
        grid: int,
        hidden: int,
        dim: int,
        dropout: float,
        sobel: bool = True,
    ) -> None:
        """widths: of the 3×3 convolutions, POOL between. stride: of the first one.

        grid: side of the grid that is left, whatever the image's size. sobel: False for grey values in place of
        gradients.
        """
        super().__init__()
        self.dim = dim
        self.sobel = Sobel() if sobel else nn.Identity()
        self.convolutions = nn.Sequential(*_convolutions(2 if sobel else 1, widths, stride))
        self.grid = nn.AdaptiveAvgPool2d(grid)
        channels = [width for width in widths if width != POOL][-1]
        self.connected = nn.Sequential(
            nn.Linear(channels * grid**2, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) → (B, dim)."""
        maps = self.grid(self.convolutions(self.sobel(images)))  # (B, C, grid, grid)
        features: torch.Tensor = self.connected(maps.flatten(1))
        return features


class Vgg16Sobel(VggSobel):
    """VGG-16 with batch norm: 7×7 grid, 4096 features, 134 million parameters. DeepCluster reference defaults."""

    def __init__(self, sobel: bool = True) -> None:
        super().__init__(VGG16, grid=7, hidden=4096, dim=4096, dropout=0.5, sobel=sobel)


class SmallVggSobel(VggSobel):
    """Four convolutions, 16 million multiplications at 64 px: trains in minutes on two cores.

    A 4×4 grid is kept, because where something lies is most of what tells radiographs and slices apart. No dropout:
    there is little to over-fit with. shrink: images are first averaged over squares of this side, so that 2 brings
    128 px to the 64 px that this network is for.
    """

    def __init__(self, shrink: int = 1, sobel: bool = True) -> None:
        super().__init__(SMALL, grid=4, hidden=256, dim=256, dropout=0.0, sobel=sobel)
        self.shrink = nn.AvgPool2d(shrink)
        for layer in self.connected:
            if isinstance(
                layer, nn.Linear
            ):  # N(0, .01) suits 4096 inputs; from 256 nothing gets through, none is learnt
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) → (B, dim)."""
        return super().forward(self.shrink(images))


def _convolutions(channels: int, widths: Sequence[int], stride: int) -> Iterable[nn.Module]:
    for width in widths:
        if width == POOL:
            yield nn.MaxPool2d(2)
            continue
        yield nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        yield nn.BatchNorm2d(width)
        yield nn.ReLU(inplace=True)
        channels, stride = width, 1


def _initialise(module: nn.Module) -> None:
    """Normal with the variance that keeps gradients' size (He et al. 2015, fan-out); linear layers N(0, .01)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
