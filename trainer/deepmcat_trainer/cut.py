"""Where to cut the merge tree, without labels: a suggestion for people to correct.

The cosine silhouette (Rousseeuw 1987) of at most SAMPLE fit images, against all of them, at every number of groups up
to a maximum. Among the cuts within TOLERANCE of the best, the one below the widest relative gap in the tree is taken:
silhouettes of neighbouring cuts often differ by less than chance, and the gap says which of them merging resists.

The tree of a random walk needs no silhouette: its heights say how isolated two groups are (walk_cut).

What it cannot do: an average over images hardly notices a rare kind of image, and kinds that look alike (the two
planes of one joint) score better together. It is a start for naming, never a claim about how many kinds there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.tree import MergeTree
from deepmcat_trainer.clustering import FineClusters

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SAMPLE = 5000
TOLERANCE = 0.01
MAX_CATEGORIES = 60  # more than anybody wants to name
EPSILON = 1e-5  # distances below this are rounding of float32


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedCut:
    """The number of groups suggested, and what it was chosen from: the mean silhouette and gap at each number."""

    k: int
    silhouettes: dict[int, float]
    gaps: dict[int, float]


def suggest_cut(
    tree: MergeTree, fine: FineClusters, embeddings: Floats, *, max_categories: int, seed: int
) -> SuggestedCut:
    """A cut between 2 and `max_categories` groups; 1 where no cut has a silhouette above 0.

    embeddings: (N, D) of the fit images, in the order of `fine.assignment`.
    """
    most = min(max_categories, tree.k)
    chosen = _sample(len(embeddings), seed)
    scores = _silhouettes(tree, fine, embeddings, chosen, most)
    gaps = {k: _gap(tree, k) for k in scores}
    best = max(scores.values(), default=0.0)
    if best <= 0:
        return SuggestedCut(k=1, silhouettes=scores, gaps=gaps)
    near = [k for k, score in scores.items() if score >= best - TOLERANCE]
    return SuggestedCut(k=max(near, key=lambda k: (gaps[k], -k)), silhouettes=scores, gaps=gaps)


def walk_cut(tree: MergeTree, *, max_categories: int) -> SuggestedCut:
    """The cut of a walk's tree (walk.py) below the widest gap between the costs of two merges; 1 is among them.

    Where that gap lies beyond `max_categories`, there are more kinds than that, and it is `max_categories`.
    A merge costs from 0, where the walk has mixed the two sides, to 1, where it never crosses, whatever their sizes:
    half the square of Ward's height. Groups that people tell apart cost near 1, parts of one kind mix away.
    """
    most = min(max_categories, tree.k)
    costs = [1.0, *(min(1.0, merge.height**2 / 2) for merge in reversed(tree.merges)), 0.0]  # of going below k groups
    gaps = {k: costs[k - 1] - costs[k] for k in range(1, tree.k + 1)}
    # Looked for in the whole tree: where there are more kinds than `most`, the gaps up to there are rounding.
    widest = max(gaps, key=lambda k: (gaps[k], -k))
    return SuggestedCut(k=min(widest, most), silhouettes={}, gaps={k: gaps[k] for k in range(1, most + 1)})


def _sample(n: int, seed: int) -> Ints:
    if n <= SAMPLE:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, SAMPLE, replace=False))


def _gap(tree: MergeTree, k: int) -> float:
    """How much higher the next merge is than the last one done, relative to it: 0 to 1."""
    above = tree.merges[tree.k - k].height
    below = tree.merges[tree.k - k - 1].height if k < tree.k else 0.0
    return (above - below) / above if above > 0 else 0.0


def _silhouettes(tree: MergeTree, fine: FineClusters, embeddings: Floats, chosen: Ints, most: int) -> dict[int, float]:
    """The mean silhouette of the images `chosen`, at 2 … `most` groups.

    The mean cosine distance of x to a group is 1 − x·S/n with S the sum of the group's embeddings, so no pair is
    ever looked at. Cuts are nested: the sums of the finest one considered serve all.
    """
    finest = tree.cut(most)
    sums = _summed(fine.sums(embeddings), finest, most)
    products = embeddings[chosen] @ sums.T.astype(np.float32)  # (n, most)
    sizes = _summed(fine.sizes[:, None], finest, most)
    members = finest[fine.assignment[chosen]]
    coarser = np.empty(most, dtype=np.int64)
    scores = {}
    for k in range(2, most + 1):
        coarser[finest] = tree.cut(k)
        scores[k] = _mean_silhouette(
            _summed(products.T, coarser, k).T, _summed(sizes, coarser, k)[:, 0], coarser[members]
        )
    return scores


def _mean_silhouette(products: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], own: Ints) -> float:
    """From x·S of each image and group (n, k), the groups' sizes (k,) and each image's own group (n,)."""
    rows = np.arange(len(own))
    n_own = sizes[own]
    within = np.maximum(n_own - products[rows, own], 0) / np.maximum(n_own - 1, 1)  # without the image itself
    distances = np.maximum(1 - products / sizes, 0)
    distances[rows, own] = np.inf
    other = distances.min(axis=1)
    scale = np.maximum(within, other)
    scores = np.where((n_own > 1) & (scale > EPSILON), (other - within) / np.maximum(scale, EPSILON), 0.0)
    return float(scores.mean())


def _summed(rows: npt.NDArray[Any], groups: Ints, k: int) -> npt.NDArray[np.float64]:
    """The sum of the rows of each group, (k, …)."""
    sums = np.zeros((k, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums
