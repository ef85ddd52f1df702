"""What an engine gives for an image, as one row of numbers that a batch can be cut into and joined from.

    embedding, D numbers                                                          from every engine
    embedding, D | similarities, n | ids, n: of the nearest clusters, nearest first    from one that searches too

Ids are float32 like the rest, so that a device sends one block back; float32 has each whole number up to 2²⁴.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LARGEST_ID = 2**24


def embeddings_of(rows: Floats, dim: int) -> Floats:
    """(B, dim) of rows (B, W)."""
    return rows[:, :dim]


def nearest_of(rows: Floats, dim: int) -> tuple[Ints, Floats] | None:
    """Ids (B, n) and distances (B, n), 1 − cosine, as `Centroids.nearest` gives them; None where rows have none."""
    n = (rows.shape[1] - dim) // 2
    if n == 0:
        return None
    similarities, ids = rows[:, dim : dim + n], rows[:, dim + n :]
    return ids.astype(np.int64), np.clip(1.0 - similarities, 0.0, 2.0).astype(np.float32)
