"""The merge tree over fine clusters: average and Ward linkage, weighted by size.

A fine cluster stands for its images, so merging goes on as if the images themselves had been merged so far. With
S the sum and n the number of a cluster's unit embeddings, the mean cosine distance over all pairs of images of two
clusters is 1 − S_a·S_b / (n_a n_b), and the means S/n are all that Ward needs. scipy's linkage takes no weights.

Both rules are *reducible* (a merge never comes nearer to a third than its parts were), so following nearest
neighbours until two are each other's finds the same tree as always merging the closest pair, in O(K²) time
(nearest-neighbour chain; Müllner 2011, arXiv:1109.2378). Memory is one K × K matrix of float32.

Ward weighs a merge by the images it moves, so its groups are of comparable size; average linkage gives a small group
that lies far out as much room as a large one, and spends the first cuts on them. With a pretrained encoder on MedNIST
and cardiac scouts, at one to two groups a class, Ward mostly kept more classes apart where classes are even or 10:1.
At 100:1 it is open: average linkage mostly had the higher ARI, and in some draws Ward lost a class that it kept. That
was seen by looking at labels. Which of them small archives get (grouping.WALK_FROM) has no measurement behind it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deepmcat_core.tree import Merge, MergeTree

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Linkage = Literal["average", "ward"]

BLOCK = 1024


def merge_tree(sums: Doubles, sizes: Ints, linkage: Linkage) -> MergeTree:
    """The tree over K clusters, from the sums (K, D) and numbers (K,) of their images' unit embeddings.

    Heights never fall: for "average" the mean cosine distance between the images of the two sides, for "ward" the
    Euclidean distance that scipy reports.
    """
    start = {"average": _average_distances, "ward": _ward_distances}[linkage](sums, sizes)
    pairs, heights = _chain(start, sizes.astype(np.float64), linkage)
    if linkage == "ward":
        heights = np.sqrt(heights)
    return MergeTree(k=len(sizes), merges=_in_order(pairs, heights), linkage=linkage)


def ward_tree(products: Floats, weights: Doubles, linkage: str) -> MergeTree:
    """Ward's tree over K weighted points, from their inner products (K, K), which it overwrites.

    Heights are the roots of twice a merge's growth of the weighted sum of squares.
    """
    pairs, heights = _chain(_ward(products, weights), weights, "ward")
    return MergeTree(k=len(weights), merges=_in_order(pairs, np.sqrt(np.maximum(heights, 0))), linkage=linkage)


def _average_distances(sums: Doubles, sizes: Ints) -> Floats:
    means = sums / sizes[:, None]
    return np.asarray(1 - means @ means.T, dtype=np.float32)


def _ward_distances(sums: Doubles, sizes: Ints) -> Floats:
    means = sums / sizes[:, None]
    return _ward(means @ means.T, sizes.astype(np.float64))


def _ward(products: npt.NDArray[Any], n: Doubles) -> Floats:
    """Twice the growth of the sum of squares when two merge: 2 n_a n_b / (n_a + n_b) · |p_a − p_b|², (K, K).

    In blocks and in place where it can be: K × K of float64 several times over is gigabytes at 16,384.
    """
    squares = products.diagonal().copy()
    distances = np.asarray(products, dtype=np.float32)
    for start in range(0, len(n), BLOCK):
        here = slice(start, start + BLOCK)
        gaps = np.maximum(squares[here, None] + squares[None] - 2 * products[here], 0)
        distances[here] = 2 * n[here, None] * n[None] / (n[here, None] + n[None]) * gaps
    for start in range(0, len(n), BLOCK):  # the two halves may round differently
        here = slice(start, start + BLOCK)
        distances[:, here] = np.minimum(distances[:, here], distances[here].T)
        distances[here] = distances[:, here].T
    return distances


def _chain(d: Floats, n: Doubles, linkage: Linkage) -> tuple[list[tuple[int, int]], Doubles]:
    """The pairs merged, each named by a cluster within it, and their distances. Overwrites `d` (K, K)."""
    k = len(n)
    n = n.copy()
    active = np.ones(k, dtype=bool)
    np.fill_diagonal(d, np.inf)
    pairs: list[tuple[int, int]] = []
    heights = np.zeros(k - 1)
    chain: list[int] = []
    for step in range(k - 1):
        if not chain:
            chain = [int(np.argmax(active))]
        while True:
            row = d[chain[-1]]
            nearest = int(np.argmin(row))
            if len(chain) > 1 and row[nearest] >= row[chain[-2]]:  # a tie goes back, or the chain might run in a circle
                break
            chain.append(nearest)
        b, a = chain.pop(), chain.pop()
        pairs.append((a, b))
        heights[step] = d[a, b]
        others = active.copy()
        others[[a, b]] = False
        d[b, others] = d[others, b] = _merged(d[a, others], d[b, others], d[a, b], n[a], n[b], n[others], linkage)
        d[a, :] = d[:, a] = np.inf
        active[a] = False
        n[b] += n[a]
    return pairs, heights


def _merged(
    to_a: Floats, to_b: Floats, between: np.float32, n_a: float, n_b: float, n: Doubles, linkage: Linkage
) -> Doubles:
    """Distances of a ∪ b to the others (Lance and Williams 1967)."""
    if linkage == "average":
        return (n_a * to_a + n_b * to_b) / (n_a + n_b)
    return ((n_a + n) * to_a + (n_b + n) * to_b - n * between) / (n_a + n_b + n)


def _in_order(pairs: list[tuple[int, int]], heights: Doubles) -> tuple[Merge, ...]:
    """The merges lowest first, with nodes numbered as MergeTree wants them."""
    k = len(pairs) + 1
    node = list(range(k))  # the node that each cluster's root stands for
    root = list(range(k))

    def find(cluster: int) -> int:
        while root[cluster] != cluster:
            root[cluster] = root[root[cluster]]
            cluster = root[cluster]
        return cluster

    merges = []
    height = 0.0
    for i, step in enumerate(np.argsort(heights, kind="stable")):
        a, b = (find(cluster) for cluster in pairs[step])
        height = max(height, float(heights[step]))  # rounding of float32 may dip below
        merges.append(Merge(left=min(node[a], node[b]), right=max(node[a], node[b]), height=height))
        root[a] = b
        node[b] = k + i
    return tuple(merges)
