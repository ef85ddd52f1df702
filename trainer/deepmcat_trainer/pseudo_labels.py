"""The E step of DeepCluster: features become clusters, which are the next epoch's targets.

Caron et al. 2018, "Deep Clustering for Unsupervised Learning of Visual Features", section 3; the values are the
defaults of its authors' reference code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.faiss_index import import_faiss, on_device
from deepmcat_trainer.pca import Pca

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoLabels:
    """labels: (N,) the cluster of each fit image, in the order of the split. pca: what whitened the features."""

    labels: Ints
    pca: Pca


def default_k(n: int) -> int:
    """clip(N/100, 32, 1000), and never so many that a cluster would have fewer than two images."""
    return min(int(np.clip(n // 100, 32, 1000)), max(2, n // 2))


def assign(features: Floats, *, k: int, pca_dim: int, iterations: int, seed: int, device: str = "cpu") -> PseudoLabels:
    """PCA-whitening, L2, k-means. features: (N, F)."""
    pca = Pca.fit(features, pca_dim, device)
    reduced = normalised(pca.whiten(features))  # (N, d)
    return PseudoLabels(labels=kmeans(reduced, k=k, iterations=iterations, seed=seed, device=device), pca=pca)


def normalised(rows: Floats) -> Floats:
    """Rows at unit length; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)


def kmeans(rows: Floats, *, k: int, iterations: int, seed: int, device: str = "cpu") -> Ints:
    """The cluster of each row (N, d), by faiss k-means over all rows from a random start.

    faiss subsamples to 256 rows a centroid unless told otherwise, and warns below 39: both bounds are lifted. An
    empty cluster takes half of another in faiss's own way; some may be empty after the last iteration all the same.
    """
    faiss = import_faiss()
    parameters = faiss.ClusteringParameters()
    parameters.niter = iterations
    parameters.seed = seed
    parameters.max_points_per_centroid = len(rows)
    parameters.min_points_per_centroid = 1
    clustering = faiss.Clustering(rows.shape[1], k, parameters)
    index = on_device(faiss.IndexFlatL2(rows.shape[1]), device)
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    clustering.train(rows, index)
    _, nearest = index.search(rows, 1)
    return np.asarray(nearest[:, 0], dtype=np.int64)
