"""What a method hands over for scoring: groups of the fit and test images at any number of groups it can give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deepmcat_core.tree import MergeTree

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """The cluster of each fit and test image, 0 … k−1."""

    k: int
    fit: Ints
    test: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """p_values: (n,) of the test images, NaN where there is no verdict. scores: (n,) what they rank by, high is odd."""

    p_values: Doubles
    scores: Doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """fine: the finest clusters. tree: how they merge; None where every k is a run of its own, then in `runs`.

    suggested_k: a cut chosen without labels. seconds: by stage; "embed" as measured when the features were cached.
    """

    fine: Clusters
    tree: MergeTree | None = None
    runs: Mapping[int, Clusters] = field(default_factory=dict)
    suggested_k: int | None = None
    verdicts: Verdicts | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def at(self, k: int) -> Clusters | None:
        """The clusters merged into `k` groups, or into all there are; None where nothing was fitted at this k."""
        if k == self.fine.k:
            return self.fine
        if self.tree is None:
            return self.runs.get(k)
        k = min(k, self.tree.k)
        groups = self.tree.cut(k)
        return Clusters(k=k, fit=groups[self.fine.fit], test=groups[self.fine.test])

    def numbers(self, most: int) -> list[int]:
        """The numbers of groups up to `most` that `at` can give, ascending."""
        if self.tree is None:
            return sorted(k for k in {*self.runs, self.fine.k} if k <= most)
        return list(range(1, min(most, self.tree.k) + 1))
