"""How fine clusters merge into larger groups, so that any cut costs no retraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.errors import ArtifactDamaged

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """One merge of two nodes. Nodes 0 … K−1 are fine clusters; the i-th merge makes node K+i."""

    left: int
    right: int
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTree:
    """A binary tree over K fine clusters: K−1 merges, lowest first (the layout of scipy's linkage matrix).

    linkage: the name of the rule that made it.
    """

    k: int
    merges: tuple[Merge, ...]
    linkage: str

    def __post_init__(self) -> None:
        """Refuse anything that is not one tree over all clusters."""
        if len(self.merges) != self.k - 1:
            raise ArtifactDamaged(f"the tree has {len(self.merges)} merges; {self.k} clusters need {self.k - 1}")
        seen: set[int] = set()
        for i, merge in enumerate(self.merges):
            children = {merge.left, merge.right}
            if len(children) < 2 or children & seen or not all(0 <= c < self.k + i for c in children):
                raise ArtifactDamaged(f"merge {i} of the tree does not join two free nodes")
            seen |= children

    def cut(self, k: int) -> Ints:
        """The group (0 … k−1) of each fine cluster when the tree is cut into `k` groups; shape (K,).

        Groups are numbered by their lowest cluster, so equal trees give equal numbers.
        """
        if not 1 <= k <= self.k:
            raise ValueError(f"k is {k}; this tree can be cut into 1 to {self.k} groups")
        node = np.arange(2 * self.k - 1)
        for i in range(self.k - k - 1, -1, -1):  # from the highest merge kept, so that each child learns its root
            merge = self.merges[i]
            node[[merge.left, merge.right]] = node[self.k + i]
        _, first, groups = np.unique(node[: self.k], return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[groups].astype(np.int64)

    def parents(self) -> Ints:
        """The parent of each of the 2K−1 nodes; the root is its own."""
        parents = np.arange(2 * self.k - 1)
        for i, merge in enumerate(self.merges):
            parents[[merge.left, merge.right]] = self.k + i
        return parents

    def to_json(self) -> dict[str, Any]:
        """The content of tree.json."""
        return {
            "k": self.k,
            "linkage": self.linkage,
            "merges": [[m.left, m.right, m.height] for m in self.merges],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MergeTree:
        """The tree of a tree.json. Raises ArtifactDamaged."""
        try:
            merges = tuple(Merge(left=int(a), right=int(b), height=float(h)) for a, b, h in data["merges"])
            return cls(k=int(data["k"]), merges=merges, linkage=str(data["linkage"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactDamaged("tree.json does not hold a merge tree") from error
