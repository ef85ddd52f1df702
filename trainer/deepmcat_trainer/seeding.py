"""More centroids for the images that lie far from those there are: greedy k-means++.

k-means++ (Arthur and Vassilvitskii 2007) draws each new centre by squared distance. Its greedy form draws a few and
takes the one that helps most, which a group does and a lone image does not: that is how a group of thirty among
thousands of strays gets a centre.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def greedy(rows: Floats, similarities: Floats, k: int, *, seed: int, device: str = "cpu") -> Ints:
    """Up to `k` of `rows` as new centres, by position; fewer where no row is left that a centre does not coincide with.

    rows: (n, D) unit vectors. similarities: (n,) cosine of each to the nearest centre that there is already.
    """
    rng = np.random.default_rng(seed)
    draws = 2 + int(np.log(k))  # the number that scikit-learn draws too
    points = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(device)
    squares = _squares(torch.from_numpy(similarities).to(device))  # (n,) to the nearest centre
    chosen: list[int] = []
    while len(chosen) < k:
        mass = squares.double().cumsum(0)
        if float(mass[-1]) <= 0:
            break
        targets = torch.from_numpy(rng.random(draws)).to(device) * mass[-1]
        drawn = torch.searchsorted(mass, targets, right=True).clamp_max(len(points) - 1)  # (draws,)
        then = torch.minimum(squares[:, None], _squares(points @ points[drawn].T))  # (n, draws)
        best = int(then.sum(0).argmin())
        squares = then[:, best]
        squares[drawn[best]] = 0  # rounding leaves a row a little way from itself
        chosen.append(int(drawn[best]))
    return np.asarray(chosen, dtype=np.int64)


def _squares(similarities: torch.Tensor) -> torch.Tensor:
    """Squared distances between unit vectors; what float32 cannot tell from 0 is 0."""
    squares = 2 - 2 * similarities
    return torch.where(squares < 1e-6, torch.zeros_like(squares), squares)
