"""One seed for each use of randomness, derived from the run's seed: an epoch's randomness depends on nothing before it.

This is what makes a resumed run equal an uninterrupted one: no state of a random generator has to be kept.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What a seed is for. The numbers are part of a run's meaning: never change one, only add."""

    WEIGHTS = 0
    KMEANS = 1
    SAMPLER = 2
    TRAINING = 3  # head, augmentation, dropout


def derive(seed: int, use: Use, epoch: int = 0) -> int:
    """A seed of 31 bits (faiss takes a C int) for one use in one epoch of the run with `seed`."""
    return int(np.random.SeedSequence([seed, int(use), epoch]).generate_state(1)[0] >> 1)
