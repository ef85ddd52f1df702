"""The fine clusters: many small spherical k-means++ clusters over the embeddings.

Many, because a rare kind of image only keeps a cluster of its own where there are enough clusters to go round; and
k-means++, because random starts all fall into the large kinds. Merging comes after (merge.py).

Up to MOST_ROWS images all of them train the centroids. Above, so many drawn at random train three quarters of them;
the images that are then the farthest from their centroid, among them the kinds too rare to be drawn, train the rest,
by a start that prefers groups to strays (seeding.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.centroids import UNIT_TOLERANCE, Centroids
from deepmcat_core.faiss_index import import_faiss, on_device
from deepmcat_trainer.distributed import ALONE, World
from deepmcat_trainer.seeding import greedy

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

IMAGES_PER_CLUSTER = 12
FEWEST_CLUSTERS, MOST_CLUSTERS = 1024, 16_384
FEWEST_IMAGES_PER_CLUSTER = 3  # in a small set, where a rare kind of two dozen images still needs clusters of its own
MOST_ROWS = 500_000  # that train: of 256 dimensions they take 512 MB
FAR_SHARE = 4  # one in so many centroids is for the images farthest from the others, and one in so many rows
BLOCK = 65_536  # rows looked at in one go


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
        return _sums(embeddings, self.assignment, self.k)


def default_k(images: int) -> int:
    """How many fine clusters `images` get: one in 12, within 1024 and 16,384, and never fewer than 3 images each."""
    k = int(np.clip(images // IMAGES_PER_CLUSTER, FEWEST_CLUSTERS, MOST_CLUSTERS))
    return max(1, min(k, images // FEWEST_IMAGES_PER_CLUSTER))


def kmeans(
    embeddings: Floats,
    k: int,
    *,
    niter: int,
    nredo: int,
    seed: int,
    device: str = "cpu",
    most_rows: int = MOST_ROWS,
    world: World = ALONE,
) -> FineClusters:
    """Spherical k-means with k-means++ starts, the best of `nredo` by faiss's objective.

    embeddings: (N, D), of each process of `world` its own part; the clusters are those of all of them together, on
    every process. most_rows: how many train, and are held by the first process at once. Clusters that end empty
    (identical images leave some) are dropped, so there can be fewer than `k`.
    """
    _, n = world.span(len(embeddings))
    k = min(k, n)
    trained = k if n <= most_rows else k - k // FAR_SHARE
    if n <= most_rows:
        rows = world.collect(embeddings)
    else:
        rows = world.collect(embeddings[world.within(drawn(n, most_rows, seed), len(embeddings))])
    centroids = world.tell(None if rows is None else _trained(rows, trained, niter, nredo, seed, device))
    nearest, distances = _nearest(centroids, embeddings, device)
    if trained < k:
        far = _farthest(world.gather(distances), most_rows // FAR_SHARE)
        here = world.within(far, len(embeddings))
        rows, known = world.collect(embeddings[here]), world.collect(1 - distances[here])
        more = world.tell(
            None if rows is None or known is None else _far_clusters(rows, known, k - trained, niter, seed, device)
        )
        if len(more):
            others, to_others = _nearest(more, embeddings, device)
            nearest = np.where(to_others < distances, others + len(centroids), nearest)
            distances = np.minimum(distances, to_others)
            centroids = np.concatenate([centroids, more])
    used, assignment = np.unique(world.gather(nearest), return_inverse=True)
    return FineClusters(
        centroids=np.ascontiguousarray(centroids[used]),
        assignment=assignment.astype(np.int64),
        distances=world.gather(distances),
    )


def drawn(n: int, most: int, seed: int) -> Ints:
    """`most` of `n` rows, ascending."""
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def _farthest(distances: Floats, count: int) -> Ints:
    """The rows with the `count` largest distances, ascending."""
    return np.sort(np.argpartition(-distances, count)[:count])


def _trained(embeddings: Floats, k: int, niter: int, nredo: int, seed: int, device: str) -> Floats:
    centroids = _train(embeddings, k, niter, nredo, seed, device)
    norms = np.linalg.norm(centroids, axis=1)
    centroids = centroids[np.abs(norms - 1) < UNIT_TOLERANCE]  # opposite images can average to nothing
    return centroids if len(centroids) else embeddings[:1]


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


def _far_clusters(rows: Floats, known: Floats, k: int, niter: int, seed: int, device: str) -> Floats:
    """Centroids (≤ k, D) beside those that there are, to which `rows` (n, D) have the similarities `known` (n,)."""
    centroids = rows[greedy(rows, known, k, seed=seed, device=device)]
    for _ in range(niter if len(centroids) else 0):
        nearest, distances = _nearest(centroids, rows, device)
        own = 1 - distances > known
        sums = _sums(rows[own], nearest[own], len(centroids))
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        kept = norms < UNIT_TOLERANCE  # without images, or their average is nothing
        centroids = np.where(kept, centroids, sums / np.where(kept, 1, norms)).astype(np.float32)
    return centroids


def _nearest(centroids: Floats, embeddings: Floats, device: str) -> tuple[Ints, Floats]:
    """The nearest centroid of each row and the distance to it, (N,) each."""
    index = Centroids(centroids, device)
    nearest, distances = np.empty(len(embeddings), np.int64), np.empty(len(embeddings), np.float32)
    for start in range(0, len(embeddings), BLOCK):
        where = slice(start, start + BLOCK)
        ids, gaps = index.nearest(embeddings[where], 1)
        nearest[where], distances[where] = ids[:, 0], gaps[:, 0]
    return nearest, distances


def _sums(embeddings: Floats, assignment: Ints, k: int) -> npt.NDArray[np.float64]:
    """The sum of the rows of each cluster, (k, D); zeros where it has none."""
    sums = np.zeros((k, embeddings.shape[1]))
    for start in range(0, len(embeddings), BLOCK):
        clusters = assignment[start : start + BLOCK]
        order = np.argsort(clusters, kind="stable")
        present, first = np.unique(clusters[order], return_index=True)
        block = np.asarray(embeddings[start : start + BLOCK], dtype=np.float64)[order]
        sums[present] += np.add.reduceat(block, first, axis=0)
    return sums
