"""The fine clusters' centroids, and the search for the nearest ones with faiss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.errors import ArtifactDamaged
from deepmcat_core.faiss_index import import_faiss, on_device

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

UNIT_TOLERANCE = 1e-3


class Centroids:
    """K unit vectors of dimension D, searched exactly by inner product, which on unit vectors ranks like cosine.

    A flat index: at the sizes we serve (up to about 16,000 centroids) exact search costs less than the encoder,
    and an approximate index would make the answer depend on how it was built.
    """

    def __init__(self, vectors: Floats, device: str = "cpu") -> None:
        """`vectors`: (K, D) float32, finite, of unit length. `device`: "cpu", or "cuda[:N]" for faiss on that GPU."""
        if vectors.ndim != 2 or vectors.shape[0] == 0:
            raise ArtifactDamaged(f"centroids have shape {vectors.shape}; (K, D) with K of at least 1 is needed")
        if not np.isfinite(vectors).all():
            raise ArtifactDamaged("centroids are not finite")
        if np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > UNIT_TOLERANCE:
            raise ArtifactDamaged("centroids are not unit vectors")
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._index = _flat_index(self.vectors, device)

    @property
    def k(self) -> int:
        """The number of centroids."""
        return int(self.vectors.shape[0])

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        return int(self.vectors.shape[1])

    def nearest(self, embeddings: Floats, n: int) -> tuple[Ints, Floats]:
        """The `n` nearest clusters of each embedding, nearest first.

        embeddings: (B, D) float32 unit vectors. Returns ids (B, n) and distances (B, n), 1 − cosine.
        """
        similarities, ids = self._index.search(np.ascontiguousarray(embeddings, dtype=np.float32), min(n, self.k))
        return ids, np.clip(1.0 - similarities, 0.0, 2.0).astype(np.float32)


def _flat_index(vectors: Floats, device: str) -> Any:
    index = import_faiss().IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return on_device(index, device)
