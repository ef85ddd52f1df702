"""What any method has to beat: plain k-means on the pixels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.evaluate import Evaluation, Labelled, score_groups
from deepmcat_trainer.splits import Split

SEED = 0
ITERATIONS = 20

Floats = npt.NDArray[np.float32]


def raw_pixels(dataset: Dataset, side: int, ks: Sequence[int]) -> dict[str, Any]:
    """K-means in the space of pixels, Euclidean, fitted on the fit split; test images go to the nearest centroid.

    Each k is a run of its own, started by k-means++. The scores are those of `deepmcat evaluate`.
    """
    names = sorted(set(dataset.labels()))
    labels = np.asarray([names.index(label) for label in dataset.labels()], dtype=np.int64)
    start = time.monotonic()
    fit, test = dataset.indices(Split.FIT), dataset.indices(Split.TEST)
    fit_pixels, test_pixels = (pixels(dataset.images, rows, side) for rows in (fit, test))
    cuts = []
    for k in sorted({min(k, len(fit)) for k in ks}):
        fit_clusters, test_clusters = kmeans(fit_pixels, test_pixels, k)
        scored = Labelled(classes=labels[test], clusters=test_clusters)
        cuts.append(score_groups(np.arange(k), k, scored, Labelled(classes=labels[fit], clusters=fit_clusters)))
    evaluation = Evaluation(
        n=len(test), classes=len(names), split="test", fine_k=max(ks), suggested_k=0, cuts=tuple(cuts)
    )
    return {"seconds": {"k-means": round(time.monotonic() - start, 1)}, "evaluation": evaluation.to_json()}


def pixels(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], side: int) -> Floats:
    """The images at `rows` as vectors of side × side means, (n, side²)."""
    size = images.shape[1]
    if size % side:
        raise ValueError(f"images of {size} px do not divide into {side} px")
    factor = size // side
    means = np.empty((len(rows), side * side), dtype=np.float32)
    for i, row in enumerate(rows):
        means[i] = images[row].reshape(side, factor, side, factor).mean(axis=(1, 3)).ravel()
    return means / np.float32(255)


def kmeans(fit: Floats, test: Floats, k: int, seed: int = SEED) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The cluster of each row of `fit` (N, D) and `test` (n, D), by Euclidean k-means of `fit` from k-means++."""
    parameters = faiss.ClusteringParameters()
    parameters.niter, parameters.seed = ITERATIONS, seed
    parameters.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    parameters.max_points_per_centroid = len(fit)
    parameters.min_points_per_centroid = 1
    index = faiss.IndexFlatL2(fit.shape[1])
    faiss.Clustering(fit.shape[1], k, parameters).train(fit, index)
    return index.search(fit, 1)[1][:, 0], index.search(test, 1)[1][:, 0]
