"""From the last grid of a network to one row of features."""

from __future__ import annotations

from typing import Literal

import torch

from deepmcat_core.errors import ConfigError

Pool = Literal["average", "grid2"]

CELLS: dict[str, int] = {"average": 1, "grid2": 4}
"""Times the channels: how many features each way of pooling gives."""


def cells(pool: str) -> int:
    """How many averages `pool` takes of a grid. Raises ConfigError."""
    if pool not in CELLS:
        raise ConfigError(f"pool is {pool!r}; 'average' and 'grid2' are the ways to pool")
    return CELLS[pool]


def pooled(maps: torch.Tensor, pool: Pool) -> torch.Tensor:
    """(B, C, H, W) → (B, C) averages, or (B, 4 C) with those of each quarter for "grid2".

    The average of everything forgets where something lies, which is much of what tells standardised views apart. An
    odd middle row or column counts on both sides.
    """
    if pool == "average":
        return maps.mean(dim=(2, 3))
    height, width = maps.shape[2:]
    upper, lower = slice(0, height - height // 2), slice(height // 2, height)
    left, right = slice(0, width - width // 2), slice(width // 2, width)
    quarters = [maps[:, :, rows, columns].mean(dim=(2, 3)) for rows in (upper, lower) for columns in (left, right)]
    return torch.cat(quarters, dim=1)
