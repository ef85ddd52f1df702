"""What any recipe has to beat, and a bound that sees labels. K-means here is Euclidean, a run for each k."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from benchmarks.baselines import kmeans
from benchmarks.baselines import pixels as pixel_vectors
from benchmarks.quality.features import Source, unprojected
from benchmarks.quality.fitted import Clusters, Fitted
from benchmarks.quality.task import Task
from sklearn.decomposition import PCA

from deepmcat_trainer import pseudo_labels
from deepmcat_trainer.settings import DeepClusterSettings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SIDE = 64
COMPONENTS = 128
NEIGHBOURS = 5
QUERIES = 1024


def pixels(task: Task) -> Fitted:
    """K-means on raw pixels."""
    start = time.monotonic()
    vectors = [pixel_vectors(task.images, rows, SIDE) for rows in (task.fold.fit, task.fold.test)]
    return _runs(vectors[0], vectors[1], task, start)


def pca(task: Task) -> Fitted:
    """K-means on the first principal components of the fit images' pixels, not whitened."""
    start = time.monotonic()
    fit, test = (pixel_vectors(task.images, rows, SIDE) for rows in (task.fold.fit, task.fold.test))
    components = min(COMPONENTS, len(fit), fit.shape[1])
    found = PCA(components, svd_solver="randomized", random_state=task.seed).fit(fit)  # exact: minutes at 4096 pixels
    return _runs(found.transform(fit), found.transform(test), task, start)


def kmeans_on(task: Task, source: Source) -> Fitted:
    """K-means on the unit embeddings of an encoder."""
    fit, test = (unprojected(source, task.features(source, rows)) for rows in (task.fold.fit, task.fold.test))
    return timed(_runs(fit, test, task, time.monotonic()), {"embed": task.embedding_seconds(source)})


def nearest_labels(task: Task, source: Source) -> Fitted:
    """The class that most of the nearest fit images have, the nearest's where that is a tie. Sees their labels."""
    if task.fit_labels is None:
        raise ValueError("this method needs the labels of the fit images")
    fit, test = (unprojected(source, task.features(source, rows)) for rows in (task.fold.fit, task.fold.test))
    start = time.monotonic()
    nearest = np.concatenate(
        [
            np.argsort(-(test[i : i + QUERIES] @ fit.T), axis=1, kind="stable")[:, :NEIGHBOURS]
            for i in range(0, len(test), QUERIES)
        ]
    )
    labels = task.fit_labels[nearest]  # (n, NEIGHBOURS)
    votes = np.stack([(labels == code).sum(axis=1) for code in range(int(task.fit_labels.max()) + 1)], axis=1)
    votes = 2 * votes
    votes[np.arange(len(votes)), labels[:, 0]] += 1
    clusters = Clusters(k=votes.shape[1], fit=task.fit_labels, test=votes.argmax(axis=1).astype(np.int64))
    return Fitted(fine=clusters, seconds={"search": time.monotonic() - start})


def own_last_kmeans(fit: Floats, test: Floats, settings: DeepClusterSettings, ks: Sequence[int]) -> Fitted:
    """Paper mode's own clusters: its E step once more on the trained encoder's features, a run for each k."""
    start = time.monotonic()
    runs = {}
    for k in ks:
        found = pseudo_labels.assign(
            fit, k=k, pca_dim=settings.pca_dim, iterations=settings.kmeans_iterations, seed=settings.seed
        )
        own, others = (pseudo_labels.normalised(found.pca.whiten(rows)) for rows in (fit, test))
        used, labels = np.unique(found.labels, return_inverse=True)
        means = np.stack([own[labels == cluster].mean(axis=0) for cluster in range(len(used))])
        distances = (means**2).sum(axis=1) - 2 * others @ means.T
        runs[k] = Clusters(k=k, fit=used[labels].astype(np.int64), test=used[distances.argmin(axis=1)].astype(np.int64))
    return Fitted(fine=runs[max(runs)], runs=runs, seconds={"k-means": time.monotonic() - start})


def timed(fitted: Fitted, before: Mapping[str, float]) -> Fitted:
    """`fitted` with the seconds of the stages before it."""
    return replace(fitted, seconds={**before, **fitted.seconds})


def _runs(fit: Floats, test: Floats, task: Task, start: float) -> Fitted:
    runs = {}
    for k in task.ks:
        fit_clusters, test_clusters = kmeans(fit, test, k, task.seed)
        runs[k] = Clusters(k=k, fit=fit_clusters, test=test_clusters)
    return Fitted(fine=runs[max(runs)], runs=runs, seconds={"k-means": time.monotonic() - start})
