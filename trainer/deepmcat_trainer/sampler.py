"""The order in which an epoch sees images: small clusters more often than their share, for two reasons.

A few large clusters make the trivial solution (predict those) a good one (Caron et al. 2018, 3.3); and losses over a
batch have a prior that all clusters are equally frequent, at which rare ones lose (losses.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def uniform_over_clusters(labels: Ints, rng: np.random.Generator) -> Ints:
    """N rows, shuffled, with N/#nonempty + 1 draws from every cluster that has images, cut to N.

    A cluster smaller than its share is drawn from with replacement. labels: (N,) the cluster of each row; clusters
    without rows do not take part. This is the reference's; `tempered` is the gentler one.
    """
    n = len(labels)
    members = _members(labels)
    share = n // len(members) + 1
    draws = [rng.choice(rows, share, replace=len(rows) < share) for rows in members]
    return np.asarray(rng.permutation(np.concatenate(draws))[:n], dtype=np.int64)


def tempered(labels: Ints, alpha: float, rng: np.random.Generator) -> Ints:
    """N rows, shuffled: an image of a cluster of n images is drawn with a weight of n^−alpha.

    alpha: 0 for every image once, 1 for every cluster equally often. In between, tiny clusters, which are noisy, are
    not shown so often that they are learnt by heart. Within a cluster every image comes up equally often, but for one.
    """
    n = len(labels)
    members = _members(labels)
    shares = np.asarray([len(rows) for rows in members], dtype=np.float64) ** (1 - alpha)
    edges = np.cumsum(shares) / shares.sum() * n
    edges[-1] = n  # whatever the rounding
    counts = np.diff(np.floor(edges + rng.random()), prepend=0).astype(np.int64)
    draws = [_repeated(rows, count, rng) for rows, count in zip(members, counts, strict=True)]
    return np.asarray(rng.permutation(np.concatenate(draws))[:n], dtype=np.int64)


def _members(labels: Ints) -> list[Ints]:
    """The rows of each cluster that has any."""
    by_cluster = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[by_cluster], return_index=True)
    return np.split(by_cluster, starts[1:])


def _repeated(rows: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` of `rows`, each as often as the others or once more."""
    whole, rest = divmod(count, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.choice(rows, rest, replace=False)])
