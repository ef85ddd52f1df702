"""What every network of this package is."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from deepmcat_core.errors import ConfigError


class Backbone(nn.Module):
    """A network from normalised pixels (B, C, S, S) float32 to features (B, dim) float32.

    parts: where features come from several depths of the network, how many from each, together dim; else empty.
    mean and std, one value a channel: what the encoder normalises with, for grey values from 0 to 1; their number is
    C, and the one grey channel is repeated for each. The default leaves black at 0: images are padded with black and
    convolutions with 0, so that the border of an image is not an edge of its own.
    """

    dim: int
    parts: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def pretrained(cls, **options: Any) -> tuple[Self, dict[str, Any]]:
        """The network with weights that others trained, and the options that build it again without them.

        Raises ConfigError where there are none, MissingExtra where their package is missing.
        """
        raise ConfigError(
            "this encoder has no pretrained weights; efficientnet-lite0 has, and hf:FOLDER takes a transformers model"
        )
