"""The merge tree: cuts, parents, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage
from sklearn.metrics import adjusted_rand_score

from deepmcat_core.errors import ArtifactDamaged
from deepmcat_core.tree import Merge, MergeTree


def tree_of(points: np.ndarray) -> MergeTree:
    merges = tuple(Merge(left=int(a), right=int(b), height=float(h)) for a, b, h, _ in linkage(points, "average"))
    return MergeTree(k=len(points), merges=merges, linkage="average")


@given(seed=st.integers(0, 10_000), k=st.integers(2, 24), data=st.data())
def test_cuts_agree_with_scipy(seed: int, k: int, data: st.DataObject) -> None:
    """A cut gives the groups that scipy's cut_tree gives, numbered by their lowest cluster."""
    points = np.random.default_rng(seed).normal(size=(k, 3))
    groups = data.draw(st.integers(1, k))

    ours = tree_of(points).cut(groups)

    assert len(set(ours)) == groups
    assert adjusted_rand_score(cut_tree(linkage(points, "average"), groups)[:, 0], ours) == 1
    assert [ours.tolist().index(g) for g in range(groups)] == sorted(ours.tolist().index(g) for g in range(groups))


@given(seed=st.integers(0, 1000), k=st.integers(2, 24))
def test_cuts_are_nested(seed: int, k: int) -> None:
    """Cutting into one group less joins two groups and changes nothing else."""
    tree = tree_of(np.random.default_rng(seed).normal(size=(k, 2)))
    for groups in range(2, k + 1):
        finer, coarser = tree.cut(groups), tree.cut(groups - 1)
        assert all(len(set(coarser[finer == g])) == 1 for g in range(groups))


def test_single_cluster_is_a_tree() -> None:
    """One cluster needs no merge and can be cut into one group."""
    tree = MergeTree(k=1, merges=(), linkage="average")

    assert tree.cut(1).tolist() == [0]
    assert tree.parents().tolist() == [0]


def test_json_round_trip() -> None:
    """A tree written and read is the same tree."""
    tree = tree_of(np.random.default_rng(0).normal(size=(9, 2)))

    assert MergeTree.from_json(tree.to_json()) == tree


@pytest.mark.parametrize(
    "merges",
    [
        [],
        [[0, 1, 0.1]],
        [[0, 0, 0.1], [1, 2, 0.2]],
        [[0, 1, 0.1], [0, 2, 0.2]],
        [[0, 4, 0.1], [1, 2, 0.2]],
        [[0, 1], [2, 3]],
        "x",
    ],
)
def test_damaged_trees_are_refused(merges: object) -> None:
    """Merges that do not make one tree over three clusters are refused."""
    with pytest.raises(ArtifactDamaged):
        MergeTree.from_json({"k": 3, "linkage": "average", "merges": merges})


@pytest.mark.parametrize("k", [0, 4, -1])
def test_impossible_cuts_are_refused(k: int) -> None:
    """A cut outside 1 to K says what is possible."""
    with pytest.raises(ValueError, match="1 to 3 groups"):
        tree_of(np.eye(3)).cut(k)
