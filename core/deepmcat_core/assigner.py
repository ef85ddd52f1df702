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

Floats = npt.NDArray[np.float32]

DEFAULT_TOP_K = 3
SEARCH_FACTOR = 8  # clusters searched per candidate wanted: a category usually has a few clusters near an image


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

    def assign(self, embeddings: Floats, top_k: int = DEFAULT_TOP_K) -> list[Assignment]:
        """One assignment per embedding; embeddings: (B, D) float32 unit vectors."""
        if len(embeddings) == 0:
            return []
        top_k = max(1, min(top_k, len(self.catalog.active)))
        clusters, distances = self._nearest(embeddings, top_k)
        p_values = self.calibration.p_values(clusters[:, 0], distances[:, 0])
        return [self._assignment(clusters[i], distances[i], float(p_values[i]), top_k) for i in range(len(embeddings))]

    def _nearest(self, embeddings: Floats, top_k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Enough nearest clusters that every row names `top_k` different categories."""
        n = min(self.centroids.k, top_k * SEARCH_FACTOR)
        while True:
            clusters, distances = self.centroids.nearest(embeddings, n)
            if n == self.centroids.k or all(self._categories(row) >= top_k for row in clusters):
                return clusters, distances
            n = min(self.centroids.k, 4 * n)

    def _categories(self, clusters: npt.NDArray[np.int64]) -> int:
        return len({self.catalog.by_cluster[c].id for c in clusters})

    def _assignment(self, clusters: npt.NDArray[np.int64], distances: Floats, p_value: float, top_k: int) -> Assignment:
        candidates: dict[str, Candidate] = {}
        for cluster, distance in zip(clusters, distances, strict=True):
            category = self.catalog.by_cluster[cluster]
            if category.id not in candidates:
                candidates[category.id] = Candidate(
                    category_id=category.id, category=category.name, cluster_id=int(cluster), distance=float(distance)
                )
                if len(candidates) == top_k:
                    break
        nearest, *_ = candidates.values()
        return _verdict(nearest, None if math.isnan(p_value) else p_value, self.calibration.alpha, candidates)

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
        candidates = {c.category_id: c for c in assignments[best].candidates}
        return _verdict(assignments[best].candidates[0], p_value, self.calibration.alpha, candidates), best


def _verdict(nearest: Candidate, p_value: float | None, alpha: float, candidates: dict[str, Candidate]) -> Assignment:
    outlier = None if p_value is None else p_value < alpha
    return Assignment(
        category_id=UNKNOWN if outlier else nearest.category_id,
        category=UNKNOWN if outlier else nearest.category,
        cluster_id=nearest.cluster_id,
        distance=nearest.distance,
        p_value=p_value,
        outlier=outlier,
        candidates=tuple(candidates.values()),
    )
