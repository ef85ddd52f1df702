"""The order in which an epoch sees images: every cluster equally often, however large it is.

Without this, a few large clusters make the trivial solution (predict those) a good one (Caron et al. 2018, 3.3).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def uniform_over_clusters(labels: Ints, rng: np.random.Generator) -> Ints:
    """N rows, shuffled, with N/#nonempty + 1 draws from every cluster that has images, cut to N.

    A cluster smaller than its share is drawn from with replacement. labels: (N,) the cluster of each row; clusters
    without rows do not take part.
    """
    n = len(labels)
    by_cluster = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[by_cluster], return_index=True)
    members = np.split(by_cluster, starts[1:])
    share = n // len(members) + 1
    draws = [rng.choice(rows, share, replace=len(rows) < share) for rows in members]
    return np.asarray(rng.permutation(np.concatenate(draws))[:n], dtype=np.int64)
