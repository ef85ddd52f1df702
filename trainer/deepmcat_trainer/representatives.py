"""The images that stand for their fine clusters where there are too many for a graph of them all.

Each fine cluster gives as many as every other, or all that it has: a rare kind is in the graph with all of its images,
and only what is frequent is thinned. An image then counts for as many as it stands for, so that the walk still visits
a cluster by its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Representatives:
    """rows: (n,) of the images, ascending. counts: (n,) how many images of its cluster each of them stands for.

    each: that a cluster has given so many, or all of its images.
    """

    rows: Ints
    counts: Doubles
    each: int

    @classmethod
    def draw(cls, assignment: Ints, k: int, most: int, seed: int) -> Representatives:
        """At most `most` images, or one of each cluster where there are more clusters.

        assignment: (N,) the one of `k` clusters that each image is in. Draws at random where a cluster gives not all.
        """
        n = len(assignment)
        if n <= most:
            return cls(rows=np.arange(n), counts=np.ones(n), each=n)
        sizes = np.bincount(assignment, minlength=k)
        each = _quota(sizes, most)
        order = np.random.default_rng(seed).permutation(n)
        order = order[np.argsort(assignment[order], kind="stable")]  # cluster by cluster, in each at random
        places = np.arange(n) - (np.cumsum(sizes) - sizes)[assignment[order]]
        rows = np.sort(order[places < each])
        given = np.bincount(assignment[rows], minlength=k)
        clusters = assignment[rows]
        return cls(rows=rows, counts=sizes[clusters] / given[clusters], each=each)


def _quota(sizes: Ints, most: int) -> int:
    """The most that each cluster may give so that together they give no more than `most`, but 1 at least."""
    ascending = np.sort(sizes)
    whole = np.cumsum(ascending) - ascending  # of the smaller ones, which give all
    others = len(sizes) - np.arange(len(sizes))
    quotas = (most - whole) // others
    return max(1, int(quotas[np.flatnonzero(quotas <= ascending)[0]]))
