"""What the loop asks of an objective.

loop                                    objective
an epoch begins ───────────────────────► begin_epoch: targets, the order of images → Epoch
for rows of the order ─────────────────► loss(rows)
the epoch is over ─ parameters, buffers ─► checkpoint
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from deepmcat_trainer.monitor import Health

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What an epoch goes out with.

    order: rows of the split, in the order that they are seen in. health: of the features before the epoch. clusters:
    None where the objective makes none. chance: the loss of guessing, ln K for a classification; None where a loss
    has no such mark.
    """

    order: Ints
    health: Health
    clusters: Clusters | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """labels: (N,) the cluster of each image of the split, 0 … k−1, or −1 for images that take no part.

    previous: those of the epoch before, None for the first.
    """

    k: int
    labels: Ints
    previous: Ints | None


class Loss(NamedTuple):
    """Means over a batch, scalars. total: what to descend. cross_entropy: the part that `Epoch.chance` is a mark for.

    An objective that classifies nothing gives its total twice, and no such mark.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor


class Objective(nn.Module, ABC):
    """Parameters and buffers are part of the checkpoint, the parameters also of the loop's optimiser.

    What lives for an epoch only (a head that is made anew) is kept out of them. The loop seeds torch's generators
    before each epoch: whatever an objective draws from them is the same in a resumed run.
    """

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """Those beside the loop's: of what lives for an epoch only."""
        return ()

    @abstractmethod
    def begin_epoch(self, epoch: int) -> Epoch:
        """Get ready for an epoch, from 1. Raises InferenceError where features are not finite."""

    @abstractmethod
    def loss(self, rows: Ints) -> Loss:
        """Of the images at `rows` (B,) of the split."""
