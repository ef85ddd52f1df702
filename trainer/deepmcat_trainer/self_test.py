"""The inputs of an artifact's self-test: synthetic, so that no patient's pixels travel with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IMAGES = 8
SEED = 20_261_123


def self_test_images(size: int) -> npt.NDArray[np.uint8]:
    """The same eight images every time, (8, 1, size, size): ramps, rings, bars and noise, coarse and fine."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:size, :size] / max(size - 1, 1)
    radius = np.hypot(y - 0.5, x - 0.5)
    planes = [
        x,
        (1 - y) * (radius < 0.5),
        radius < 0.3,
        0.5 + 0.5 * np.cos(40 * radius),
        np.floor(8 * x) % 2 * (np.abs(y - 0.5) < 0.35),
        rng.random((size, size)),
        _coarse_noise(rng, size),
        0.6 * _coarse_noise(rng, size) + 0.4 * (radius < 0.4),
    ]
    return np.stack([np.rint(255 * np.asarray(p, dtype=np.float64)).astype(np.uint8) for p in planes])[:, None]


def _coarse_noise(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    cells = rng.random((8, 8))
    at = np.arange(size) * 8 // size
    return cells[np.ix_(at, at)]
