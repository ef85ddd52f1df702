"""The fine clusters: many small spherical k-means++ clusters over the embeddings.

Many, because a rare kind of image only keeps a cluster of its own where there are enough clusters to go round; and
k-means++, because random starts all fall into the large kinds. Merging comes after (merge.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.centroids import UNIT_TOLERANCE, Centroids
from deepmcat_core.faiss_index import import_faiss, on_device

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

IMAGES_PER_CLUSTER = 25
FEWEST_CLUSTERS, MOST_CLUSTERS = 64, 1024
FEWEST_IMAGES_PER_CLUSTER = 3  # below this a "cluster" of a small set is an image and its double


@dataclass(frozen=True, slots=True, kw_only=True)
class FineClusters:
    """K clusters, each with at least one image.

    centroids: (K, D) unit vectors. assignment: (N,) the nearest cluster of each image. distances: (N,) 1 − cosine.
    """

    centroids: Floats
    assignment: Ints
    distances: Floats

    @property
    def k(self) -> int:
        """The number of clusters."""
        return len(self.centroids)

    @property
    def sizes(self) -> Ints:
        """The number of images of each cluster, (K,)."""
        return np.bincount(self.assignment, minlength=self.k)

    def sums(self, embeddings: Floats) -> npt.NDArray[np.float64]:
        """The sum of the embeddings (N, D) of each cluster's images, (K, D): all that averages over pairs need."""
        order = np.argsort(self.assignment, kind="stable")
        members = np.split(order, np.cumsum(self.sizes)[:-1])
        return np.stack([embeddings[rows].sum(axis=0, dtype=np.float64) for rows in members])


def default_k(images: int) -> int:
    """How many fine clusters `images` get: one in 25, within 64 and 1024, and never fewer than 3 images each."""
    k = int(np.clip(images // IMAGES_PER_CLUSTER, FEWEST_CLUSTERS, MOST_CLUSTERS))
    return max(1, min(k, images // FEWEST_IMAGES_PER_CLUSTER))


def kmeans(embeddings: Floats, k: int, *, niter: int, nredo: int, seed: int, device: str = "cpu") -> FineClusters:
    """Spherical k-means with k-means++ starts over all embeddings (N, D), the best of `nredo` by faiss's objective.

    Clusters that end empty (identical images leave some) are dropped, so there can be fewer than `k`.
    """
    centroids = _train(embeddings, min(k, len(embeddings)), niter, nredo, seed, device)
    norms = np.linalg.norm(centroids, axis=1)
    centroids = centroids[np.abs(norms - 1) < UNIT_TOLERANCE]  # opposite images can average to nothing
    if len(centroids) == 0:
        centroids = embeddings[:1]
    nearest, distances = Centroids(centroids, device).nearest(embeddings, 1)
    used, assignment = np.unique(nearest[:, 0], return_inverse=True)
    return FineClusters(
        centroids=np.ascontiguousarray(centroids[used]),
        assignment=assignment.astype(np.int64),
        distances=distances[:, 0],
    )


def _train(embeddings: Floats, k: int, niter: int, nredo: int, seed: int, device: str) -> Floats:
    faiss = import_faiss()
    parameters = faiss.ClusteringParameters()
    parameters.spherical = True
    parameters.niter, parameters.nredo, parameters.seed = niter, nredo, seed
    parameters.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    parameters.max_points_per_centroid = max(1, len(embeddings))  # no subsampling: it would lose the rare images
    parameters.min_points_per_centroid = 1  # only silences a warning
    clustering = faiss.Clustering(embeddings.shape[1], k, parameters)
    index = on_device(faiss.IndexFlatIP(embeddings.shape[1]), device)
    clustering.train(np.ascontiguousarray(embeddings, dtype=np.float32), index)
    centroids: Floats = faiss.vector_to_array(clustering.centroids).reshape(k, embeddings.shape[1])
    return centroids
