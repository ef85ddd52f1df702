"""The E step of DeepCluster: features become clusters, which are the next epoch's targets.

Caron et al. 2018, "Deep Clustering for Unsupervised Learning of Visual Features", section 3; the values are the
defaults of its authors' reference code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.faiss_index import import_faiss, on_device
from deepmcat_trainer.clustering import BLOCK, MOST_ROWS, drawn
from deepmcat_trainer.distributed import ALONE, World
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


def assign(
    features: Floats,
    *,
    k: int,
    pca_dim: int,
    iterations: int,
    seed: int,
    device: str = "cpu",
    most_rows: int = MOST_ROWS,
    world: World = ALONE,
) -> PseudoLabels:
    """PCA-whitening, L2, k-means.

    features: (N, F), of each process of `world` its own part; the labels are of all images, on every process.
    most_rows: how many train the centroids, and are whitened at once.
    """
    pca = Pca.fit(features, pca_dim, device, world=world)
    _, n = world.span(len(features))
    if n <= most_rows:
        reduced = _reduced(pca, features)  # (n, d)
        centroids = _told(world, world.collect(reduced), k, iterations, seed, device)
        nearest = _nearest(centroids, reduced, device)
    else:
        sample = features[world.within(drawn(n, most_rows, seed), len(features))]
        centroids = _told(world, world.collect(_reduced(pca, sample)), k, iterations, seed, device)
        blocks = (features[start : start + BLOCK] for start in range(0, len(features), BLOCK))
        nearest = np.concatenate([_nearest(centroids, _reduced(pca, block), device) for block in blocks])
    return PseudoLabels(labels=world.gather(nearest), pca=pca)


def _reduced(pca: Pca, features: Floats) -> Floats:
    return normalised(pca.whiten(features))


def distance_ranks(clusters: Ints, distances: Floats) -> Floats:
    """Of each image (N,), the share of its cluster that lies nearer to the centre: 0 for the nearest, below 1 for all.

    Every cluster has images of every rank, so a threshold on it keeps rare ones.
    """
    order = np.lexsort((distances, clusters))
    _, starts, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    ranks = np.empty(len(clusters), dtype=np.float32)
    ranks[order] = (np.arange(len(clusters)) - np.repeat(starts, sizes)) / np.repeat(sizes, sizes)
    return ranks


def normalised(rows: Floats) -> Floats:
    """Rows at unit length; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)


def kmeans(rows: Floats, *, k: int, iterations: int, seed: int, device: str = "cpu") -> Ints:
    """The cluster of each row (N, d), by faiss k-means over all rows from a random start."""
    return _nearest(_centroids(rows, k, iterations, seed, device), rows, device)


def _told(world: World, rows: Floats | None, k: int, iterations: int, seed: int, device: str) -> Floats:
    return world.tell(None if rows is None else _centroids(rows, k, iterations, seed, device))


def _centroids(rows: Floats, k: int, iterations: int, seed: int, device: str) -> Floats:
    """The centroids (k, d), trained on all rows.

    Left alone, faiss subsamples to 256 rows a centroid, and warns below 39: both bounds are lifted. An empty cluster
    takes half of another in faiss's own way; some may be empty after the last iteration all the same.
    """
    faiss = import_faiss()
    parameters = faiss.ClusteringParameters()
    parameters.niter = iterations
    parameters.seed = seed
    parameters.max_points_per_centroid = len(rows)
    parameters.min_points_per_centroid = 1
    clustering = faiss.Clustering(rows.shape[1], k, parameters)
    clustering.train(np.ascontiguousarray(rows, dtype=np.float32), on_device(faiss.IndexFlatL2(rows.shape[1]), device))
    centroids: Floats = faiss.vector_to_array(clustering.centroids).reshape(k, rows.shape[1])
    return centroids


def _nearest(centroids: Floats, rows: Floats, device: str) -> Ints:
    index = import_faiss().IndexFlatL2(rows.shape[1])
    index.add(centroids)
    _, nearest = on_device(index, device).search(np.ascontiguousarray(rows, dtype=np.float32), 1)
    return np.asarray(nearest[:, 0], dtype=np.int64)
