"""How unusual a distance is: conformal p-values from held-out images.

The score of an image is its distance to the nearest centroid over that cluster's mean distance in the fit split,
so that tight and loose clusters share a scale. Scores of the calibration split are pooled per *calibration group*:
the smallest node of the merge tree above a cluster with at least MIN_GROUP of them, else all. Then, with n scores
in the group (split conformal prediction, Vovk et al. 2005; one-sided),

    p = (1 + #{calibration scores ≥ score}) / (n + 1)

For images exchangeable with the calibration split, p ≤ alpha happens with probability at most alpha: this bounds
the false rejection of usual images. It says nothing about how many unusual images are caught.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.errors import ArtifactDamaged
from deepmcat_core.tree import MergeTree

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MIN_GROUP = 200
MIN_VERDICT = 99  # the smallest possible p is 1 / (n + 1): with fewer scores it is over .01
ALPHA = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Held-out scores by group.

    images: how many held-out images there were. A group can lie within another, so an image can be in several.
    scores: (n,) float32, ascending within each group. offsets: (G+1,) where each group starts.
    groups: (K,) the group of each fine cluster. mean_distances: (K,) mean distance of the fit split's images.
    """

    images: int
    scores: Floats
    offsets: Ints
    groups: Ints
    mean_distances: Floats
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        """Refuse tables that do not fit together."""
        ok = (
            self.scores.ndim == self.offsets.ndim == self.groups.ndim == self.mean_distances.ndim == 1
            and len(self.offsets) >= 2
            and self.offsets[0] == 0
            and self.offsets[-1] == len(self.scores)
            and bool((np.diff(self.offsets) >= 0).all())
            and np.diff(self.offsets).max() <= self.images <= len(self.scores)
            and len(self.groups) == len(self.mean_distances)
            and bool(((self.groups >= 0) & (self.groups < len(self.offsets) - 1)).all())
            and bool(np.isfinite(self.scores).all() and np.isfinite(self.mean_distances).all())
            and bool((self.mean_distances > 0).all())
            and 0 < self.alpha < 1
        )
        if not ok:
            raise ArtifactDamaged("calibration tables do not fit together")

    @property
    def has_verdicts(self) -> bool:
        """Whether any group has enough scores for p-values."""
        return self.verdict_groups > 0

    @property
    def verdict_groups(self) -> int:
        """How many groups have enough scores for p-values."""
        return int((np.diff(self.offsets) >= self.min_verdict).sum())

    @property
    def min_verdict(self) -> int:
        """The scores a group needs for p-values: fewer could never reach an alpha below the default."""
        return max(MIN_VERDICT, round(1 / self.alpha) - 1)

    def note(self) -> str:
        """One sentence for people: what the verdicts of this artifact are worth."""
        if not self.has_verdicts:
            return (
                f"No outlier verdicts: {self.images} calibration images, at least {self.min_verdict} are needed "
                f"(about {10 * (self.min_verdict + 1):,} images prepared)."
            )
        groups = len(self.offsets) - 1
        pooled = "1 group" if groups == 1 else f"{groups} groups"
        return (
            f"An image is an outlier where p < {self.alpha:g}, from {self.images} calibration images in "
            f"{pooled}. This bounds false rejection only: an unusual image can still be missed."
        )

    def p_values(self, clusters: Ints, distances: Floats) -> npt.NDArray[np.float64]:
        """p-values for images at `distances` (B,) from their nearest `clusters` (B,); NaN where there is no verdict."""
        p = np.full(len(clusters), np.nan)
        scores = self.score(clusters, distances)
        for i, group in enumerate(self.groups[clusters]):
            low, high = self.offsets[group], self.offsets[group + 1]
            n = int(high - low)
            if n >= self.min_verdict:
                as_far = n - int(np.searchsorted(self.scores[low:high], scores[i], side="left"))
                p[i] = (1 + as_far) / (n + 1)
        return p

    def score(self, clusters: Ints, distances: Floats) -> Floats:
        """Distances over the clusters' own mean distances, (B,)."""
        return np.asarray(distances / self.mean_distances[clusters], dtype=np.float32)

    @classmethod
    def fit(
        cls,
        *,
        tree: MergeTree,
        fit_clusters: Ints,
        fit_distances: Floats,
        clusters: Ints,
        distances: Floats,
        alpha: float = ALPHA,
    ) -> Calibration:
        """Calibrate from the nearest clusters and distances of the fit split and of the calibration split."""
        mean_distances = _mean_distances(tree.k, fit_clusters, fit_distances)
        scores = np.asarray(distances / mean_distances[clusters], dtype=np.float32)
        nodes = _group_nodes(tree, np.bincount(clusters, minlength=tree.k))
        group_nodes, groups = np.unique(nodes, return_inverse=True)
        members = _clusters_below(tree, group_nodes)
        pooled = [np.sort(scores[np.isin(clusters, below)]) for below in members]
        offsets = np.cumsum([0, *map(len, pooled)])
        return cls(
            images=len(clusters),
            scores=np.concatenate(pooled).astype(np.float32),
            offsets=offsets.astype(np.int64),
            groups=groups.astype(np.int64),
            mean_distances=mean_distances,
            alpha=alpha,
        )


def _mean_distances(k: int, clusters: Ints, distances: Floats) -> Floats:
    """Each cluster's mean distance; the overall mean where a cluster has fewer than two images or all at its centre."""
    counts = np.bincount(clusters, minlength=k)
    sums = np.bincount(clusters, weights=distances, minlength=k)
    overall = max(float(distances.mean()) if len(distances) else 0.0, 1e-6)
    means = np.where((counts >= 2) & (sums > 1e-6), sums / np.maximum(counts, 1), overall)
    return np.asarray(np.maximum(means, 1e-6), dtype=np.float32)


def _group_nodes(tree: MergeTree, counts: Ints) -> Ints:
    """For each fine cluster the smallest node above it (or itself) with MIN_GROUP calibration images, else the root."""
    parents = tree.parents()
    totals = np.concatenate([counts, np.zeros(tree.k - 1, dtype=counts.dtype)])
    for node in range(2 * tree.k - 2):  # children come before parents
        totals[parents[node]] += totals[node]
    nodes = np.arange(tree.k)
    for cluster in range(tree.k):
        node = cluster
        while totals[node] < MIN_GROUP and parents[node] != node:
            node = parents[node]
        nodes[cluster] = node
    return nodes


def _clusters_below(tree: MergeTree, nodes: Ints) -> list[Ints]:
    """The fine clusters below each of `nodes`, walked from the node down (no table of all nodes: it can be K²)."""
    members: list[Ints] = []
    for node in nodes:
        below, stack = [], [int(node)]
        while stack:
            current = stack.pop()
            if current < tree.k:
                below.append(current)
            else:
                merge = tree.merges[current - tree.k]
                stack += [merge.left, merge.right]
        members.append(np.asarray(sorted(below), dtype=np.int64))
    return members
