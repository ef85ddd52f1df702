"""Small networks on top of an encoder's features, which train with it and are not exported."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, with batch norm and ReLU between them."""
    return nn.Sequential(*_layers(widths))


def _layers(widths: tuple[int, ...]) -> Iterator[nn.Module]:
    for i, (before, after) in enumerate(pairwise(widths)):
        if i > 0:
            yield nn.BatchNorm1d(before)
            yield nn.ReLU(inplace=True)
        yield nn.Linear(before, after)
