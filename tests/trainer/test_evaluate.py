"""Scores against cases computed by hand, and evaluation of a whole artifact."""

from __future__ import annotations

import numpy as np
import pytest

from deepmcat_core.tree import Merge, MergeTree
from deepmcat_trainer import scores
from deepmcat_trainer.evaluate import Labelled, score_cuts

# Group 0 holds three of class 0 and one of class 1, group 1 two of class 1, group 2 one of class 0.
CLASSES = np.array([0, 0, 0, 1, 1, 1, 0])
GROUPS = np.array([0, 0, 0, 0, 1, 1, 2])
TABLE = scores.contingency(CLASSES, GROUPS, 2, 3)


def test_contingency_counts_images():
    """Rows are classes, columns are groups."""
    np.testing.assert_array_equal(TABLE, [[3, 0, 1], [1, 2, 0]])


def test_purity_is_the_share_in_the_majority_of_their_group():
    """3 of 4, 2 of 2, 1 of 1."""
    assert scores.purity(TABLE) == pytest.approx(6 / 7)


def test_inverse_purity_is_the_share_in_the_majority_of_their_class():
    """3 of class 0 are in group 0, 2 of class 1 in group 1."""
    assert scores.inverse_purity(TABLE) == pytest.approx(5 / 7)


def test_accuracy_uses_each_group_once():
    """One-to-one: class 0 takes group 0, class 1 group 1, group 2 is left over."""
    assert scores.accuracy(TABLE) == pytest.approx(5 / 7)


def test_recalls_follow_the_mapping():
    """By majority class 0 is found wholly and class 1 in 2 of 3; by another mapping, otherwise."""
    np.testing.assert_allclose(scores.recalls(TABLE, scores.majority(TABLE)), [1, 2 / 3])
    np.testing.assert_allclose(scores.recalls(TABLE, np.array([1, 1, -1])), [0, 1])
    assert scores.mapped_purity(TABLE, np.array([1, 1, -1])) == pytest.approx(3 / 7)


def test_a_lost_class_shows_in_the_recalls_and_not_in_the_purity():
    """9 of 10 images in one group of one class: purity .9, mean recall .5, worst 0."""
    table = np.array([[9], [1]])
    assert scores.purity(table) == 0.9
    np.testing.assert_array_equal(scores.recalls(table, scores.majority(table)), [1, 0])


def test_a_class_that_does_not_occur_has_no_recall():
    """A class known from the fit split only is not counted as lost."""
    np.testing.assert_array_equal(scores.recalls(np.array([[3, 0], [0, 0]]), np.array([0, 1])), [1])


def test_agreement_by_hand():
    """Two classes of two in two groups that halve each: NMI 0, ARI −0.5; identical up to numbering: all 1."""
    independent = scores.agreement(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert independent["nmi"] == pytest.approx(0, abs=1e-9)
    assert independent["ari"] == pytest.approx(-0.5)
    same = scores.agreement(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    assert same == {"nmi": pytest.approx(1), "ami": pytest.approx(1), "ari": pytest.approx(1)}


def test_nmi_is_normalised_by_the_arithmetic_mean():
    """Each image its own group: I = ln 2, entropies ln 2 and ln 4, so 2/3."""
    assert scores.agreement(np.array([0, 0, 1, 1]), np.arange(4))["nmi"] == pytest.approx(2 / 3)


def tree(*heights):
    """Clusters merge one after another: 0 with 1, then with 2, and so on."""
    k = len(heights) + 1
    nodes = [0, *(k + i for i in range(k - 2))]
    return MergeTree(
        k=k,
        merges=tuple(
            Merge(left=min(n, i + 1), right=max(n, i + 1), height=h)
            for i, (n, h) in enumerate(zip(nodes, heights, strict=True))
        ),
        linkage="average",
    )


def labelled(classes, clusters):
    return Labelled(classes=np.asarray(classes), clusters=np.asarray(clusters))


def test_cuts_are_at_multiples_of_the_classes_the_suggestion_and_the_fine_level():
    """1, 1.5, 2 and 4 times two classes, the suggested 5, and all 9, each once."""
    scored = labelled([0, 1] * 9, list(range(9)) * 2)
    cuts = score_cuts(tree(*range(8)), scored, scored, suggested=5)
    assert [c.k for c in cuts] == [2, 3, 4, 5, 8, 9]


def test_cuts_stay_within_the_tree():
    """With fewer clusters than classes there is one cut, at the fine level."""
    scored = labelled([0, 1, 2], [0, 1, 1])
    assert [c.k for c in score_cuts(tree(1.0), scored, scored, suggested=2)] == [2]


def test_the_mapping_is_learned_on_the_fit_split():
    """Cluster 1 is class 0 in the fit split: its test images of class 1 count as wrong in the mapped figures only."""
    scored = labelled([0, 0, 1, 1], [0, 0, 1, 1])
    fit = labelled([0, 0], [0, 1])
    fine = score_cuts(tree(1.0), scored, fit, suggested=2)[-1]
    assert (fine.purity, fine.balanced_purity, fine.worst_recall) == (1, 1, 1)
    assert (fine.mapped_purity, fine.mapped_balanced_purity, fine.mapped_worst_recall) == (0.5, 0.5, 0)


def test_a_group_without_labelled_fit_images_is_wrong():
    """Nobody could have named cluster 1."""
    scored = labelled([0, 1], [0, 1])
    fine = score_cuts(tree(1.0), scored, labelled([0], [0]), suggested=2)[-1]
    assert (fine.purity, fine.mapped_purity) == (1, 0.5)
