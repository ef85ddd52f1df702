"""From embeddings to assignments: nearest clusters, their categories, how unusual that is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import UNKNOWN, Catalog
from deepmcat_core.centroids import Centroids
from deepmcat_core.rows import embeddings_of, nearest_of

Floats = npt.NDArray[np.float32]

DEFAULT_TOP_K = 3
SEARCH_FACTOR = 64
"""Clusters searched per candidate wanted: a category can have many near an image, and to search twice costs more than
to keep more of what one search finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A category near an image, by its nearest cluster. distance: 1 − cosine."""

    category_id: str
    category: str
    cluster_id: int
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What an image is. p_value and outlier are None where the artifact can give no verdict.

    Where `outlier` is true the category is `unknown`; `candidates` holds the nearest categories all the same.
    """

    category_id: str
    category: str
    cluster_id: int
    distance: float
    p_value: float | None
    outlier: bool | None
    candidates: tuple[Candidate, ...]


class Assigner:
    """Assigns embeddings with one set of centroids, one calibration and one catalog. Holds no state of a call."""

    def __init__(self, centroids: Centroids, calibration: Calibration, catalog: Catalog) -> None:
        self.centroids = centroids
        self.calibration = calibration
        self.catalog = catalog

    def assign(self, rows: Floats, top_k: int = DEFAULT_TOP_K) -> list[Assignment]:
        """One assignment per row: (B, D) float32 unit vectors, or with their nearest clusters (rows.py)."""
        if len(rows) == 0:
            return []
        nearest = self._nearest(rows, max(1, min(top_k, len(self.catalog.active))))
        clusters = np.array([candidates[0].cluster_id for candidates in nearest], dtype=np.int64)
        distances = np.array([candidates[0].distance for candidates in nearest], dtype=np.float32)
        p_values = self.calibration.p_values(clusters, distances).tolist()
        return [
            _verdict(None if math.isnan(p_value) else p_value, self.calibration.alpha, candidates)
            for p_value, candidates in zip(p_values, nearest, strict=True)
        ]

    def assign_each(self, images: Sequence[tuple[Floats, int]]) -> list[list[Assignment]]:
        """What `assign` has for each of several images, rows with a top_k: searched together, which costs less."""
        answers: dict[int, list[Assignment]] = {}
        for top_k in {top_k for _, top_k in images}:
            alike = [i for i, (_, wanted) in enumerate(images) if wanted == top_k]
            assigned = iter(self.assign(np.concatenate([images[i][0] for i in alike]), top_k))
            answers |= {i: [next(assigned) for _ in images[i][0]] for i in alike}
        return [answers[i] for i in range(len(images))]

    def _nearest(self, rows: Floats, top_k: int) -> list[tuple[Candidate, ...]]:
        """For each row its `top_k` nearest categories, nearest first."""
        embeddings = embeddings_of(rows, self.centroids.dim)
        found: list[tuple[Candidate, ...]] = [()] * len(rows)
        left, n = list(range(len(rows))), min(self.centroids.k, top_k * SEARCH_FACTOR)
        clusters, distances = nearest_of(rows, self.centroids.dim) or self.centroids.nearest(embeddings, n)
        while True:
            for row, near, far in zip(left, clusters.tolist(), distances, strict=True):
                found[row] = self._candidates(near, far, top_k)
            left = [row for row in left if len(found[row]) < top_k]
            if not left or clusters.shape[1] == self.centroids.k:
                return found
            n = min(self.centroids.k, 4 * clusters.shape[1])
            clusters, distances = self.centroids.nearest(embeddings[left], n)

    def _candidates(self, clusters: list[int], distances: Floats, top_k: int) -> tuple[Candidate, ...]:
        """The categories of clusters, each with its first cluster: `top_k` of them, or as many as there are."""
        candidates: dict[str, Candidate] = {}
        for i, cluster in enumerate(clusters):
            category = self.catalog.by_cluster[cluster]
            if category.id not in candidates:
                candidates[category.id] = Candidate(
                    category_id=category.id, category=category.name, cluster_id=cluster, distance=float(distances[i])
                )
                if len(candidates) == top_k:
                    break
        return tuple(candidates.values())

    def combine(self, assignments: Sequence[Assignment]) -> tuple[Assignment, int]:
        """One assignment for an image of several frames, and the index of the frame it names.

        The frames vote for their nearest category, weighted by p-value (by 1 where there is none); the assignment
        is that of the winning category's nearest frame. The combined p-value is twice the median of the frames'
        p-values, which is valid however the frames depend on each other (Rüger 1978; Vovk and Wang 2020).
        """
        if len(assignments) == 1:
            return assignments[0], 0
        votes: dict[str, float] = defaultdict(float)
        for a in assignments:
            votes[a.candidates[0].category_id] += 1.0 if a.p_value is None else a.p_value
        winner = max(votes, key=lambda category_id: votes[category_id])
        frames = [i for i, a in enumerate(assignments) if a.candidates[0].category_id == winner]
        best = min(frames, key=lambda i: assignments[i].distance)
        p_values = [a.p_value for a in assignments if a.p_value is not None]
        p_value = min(1.0, 2 * float(np.median(p_values))) if p_values else None
        return _verdict(p_value, self.calibration.alpha, assignments[best].candidates), best


def _verdict(p_value: float | None, alpha: float, candidates: tuple[Candidate, ...]) -> Assignment:
    nearest, outlier = candidates[0], None if p_value is None else p_value < alpha
    return Assignment(
        category_id=UNKNOWN if outlier else nearest.category_id,
        category=UNKNOWN if outlier else nearest.category,
        cluster_id=nearest.cluster_id,
        distance=nearest.distance,
        p_value=p_value,
        outlier=outlier,
        candidates=candidates,
    )
