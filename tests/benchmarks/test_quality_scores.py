"""Scores, clicks, outliers and intervals of the quality bench, on examples small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.quality import clicks, outliers, recipe_methods, scoring
from benchmarks.quality.fitted import Clusters, Fitted, Verdicts
from benchmarks.quality.problems import Fold, Problem
from benchmarks.quality.statistics import Summary

from deepmcat_core.tree import Merge, MergeTree

# Ten images of class 0, four of class 1; three fine clusters: {0}, {0}, {1}; the first two merge first.
CLASSES = np.asarray([0] * 10 + [1] * 4)
FINE = np.asarray([0] * 6 + [1] * 4 + [2] * 4)
TREE = MergeTree(k=3, merges=(Merge(left=0, right=1, height=1.0), Merge(left=2, right=3, height=2.0)), linkage="ward")


def one_fold(tree: MergeTree | None = TREE, suggested: int | None = 2) -> tuple[Problem, Fitted]:
    """The example with the same images as fit and test split."""
    rows = np.arange(28)
    truth = np.concatenate([CLASSES, CLASSES])
    fold = Fold(fit=rows[:14], calibration=rows[:0], test=rows[14:])
    problem = Problem(name="made up", classes=("a", "b"), truth=truth, folds=(fold,))
    return problem, Fitted(fine=Clusters(k=3, fit=FINE, test=FINE), tree=tree, suggested_k=suggested)


def test_clicks_by_cut_count_the_smallest_cut_that_is_enough() -> None:
    """One group loses class 1; two groups are right."""
    problem, fitted = one_fold()

    counted = clicks.count(problem, [fitted])

    assert counted["by_cut"] == [[1, round(10 / 14, 5), 0.0, 0.5], [2, 1.0, 1.0, 1.0], [3, 1.0, 1.0, 1.0]]
    assert counted["until_by_cut"] == 2


def test_clicks_by_size_count_images_without_a_name_as_wrong() -> None:
    """At the fine level the groups have 6, 4 and 4 images: after two names a whole class is still missing."""
    problem, fitted = one_fold(suggested=3)

    counted = clicks.count(problem, [fitted])

    assert [row[1] for row in counted["by_size"]] == [round(6 / 14, 5), round(10 / 14, 5), 1.0]
    assert counted["by_size"][1][2] == 0.0
    assert counted["until_by_size"] == 3


def test_a_suggested_cut_that_is_too_coarse_never_gets_there() -> None:
    """Names of one group cannot tell two classes apart, and the count says never."""
    problem, fitted = one_fold(suggested=1)

    assert clicks.count(problem, [fitted])["until_by_size"] is None


def test_a_method_without_a_tree_has_the_cuts_it_was_run_at() -> None:
    """No suggested cut, no curve by size, and no score at a k it was not run at."""
    problem, fitted = one_fold(tree=None, suggested=None)

    scored = scoring.score(problem, [fitted])

    assert [row[0] for row in scored["clicks"]["by_cut"]] == [3]
    assert scored["clicks"]["by_size"] == []
    assert scored["aris"] is None
    assert set(scored["levels"]) == {"1.5 C", "fine"}  # ceil(1.5 · 2) is 3


def test_the_best_cut_stands_beside_the_suggested_one() -> None:
    """Two groups are the classes; three are suggested, and their ARI is lower."""
    problem, fitted = one_fold(suggested=3)

    aris = scoring.score(problem, [fitted])["aris"]

    assert aris["best"] == pytest.approx(1.0)
    assert aris["best_k"] == 2
    assert aris["suggested"] < 1
    assert aris["suggested_k"] == 3


def test_folds_are_counted_together() -> None:
    """Two folds of one problem: wrong images add up, though cluster numbers mean different things in each."""
    problem, fitted = one_fold()
    swapped = np.asarray([2, 1, 0])[FINE]  # the same clusters under other numbers
    renamed = MergeTree(
        k=3, merges=(Merge(left=1, right=2, height=1.0), Merge(left=0, right=3, height=2.0)), linkage="ward"
    )
    wrong = swapped.copy()
    wrong[0] = 0  # a test image of class 0 in the cluster of class 1
    other = Fitted(fine=Clusters(k=3, fit=swapped, test=wrong), tree=renamed, suggested_k=2)
    both = Problem(name="folds", classes=problem.classes, truth=problem.truth, folds=problem.folds * 2)

    cut = scoring.score(both, [fitted, other])["levels"]["1 C"]

    assert cut["k"] == 2
    assert cut["mapped_purity"] == pytest.approx(27 / 28)
    assert cut["mapped_worst_recall"] == pytest.approx(19 / 20)
    assert 0.5 < cut["ari"] < 1  # the mean of 1 and of the second fold's


def test_the_binomial_interval_is_exact() -> None:
    """Clopper and Pearson's own limits: of 0 in n the upper one is 1 − (α/2)^(1/n)."""
    low, high = outliers.clopper_pearson(0, 100)

    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 100)))
    assert outliers.clopper_pearson(100, 100) == (pytest.approx(0.025 ** (1 / 100)), 1.0)


def test_false_rejection_knows_whether_alpha_is_within() -> None:
    """1 in 100 below .01 is what was promised; 10 in 100 is not; no verdict is no figure."""
    usual = np.linspace(0.005, 1, 100)

    promised, too_many = outliers.false_rejection(usual), outliers.false_rejection(np.append(usual, [0.001] * 10))

    assert promised is not None
    assert too_many is not None
    assert (promised["rejected"], promised["within"], too_many["within"]) == (1, True, False)
    assert outliers.false_rejection(np.full(3, math.nan)) is None


def test_separation_of_what_is_apart_is_one() -> None:
    """Unusual images with the smallest p-values: AUROC 1, and none of the usual ones rejected at 95 % caught."""
    p_values = np.asarray([0.5, 0.6, 0.7, 0.001, 0.002])
    unusual = np.asarray([False, False, False, True, True])

    found = outliers.separation(Verdicts(p_values=p_values, scores=1 / p_values), unusual)

    assert found == {"auroc": 1.0, "auroc_score": 1.0, "fpr95": 0.0, "fpr95_score": 0.0, "caught": 1.0}


def test_fpr_at_95_counts_what_the_threshold_costs() -> None:
    """Catching the least unusual of two needs a threshold that two of four usual images pass."""
    scores = np.asarray([9.0, 5.0, 6.0, 7.0, 1.0, 2.0])
    unusual = np.asarray([True, True, False, False, False, False])

    assert outliers.fpr_at(unusual, scores) == 0.5


def test_a_difference_needs_intervals_that_do_not_touch() -> None:
    """Three values each: t with two degrees of freedom; one value alone is never better."""
    low, high = Summary.of([0.80, 0.81, 0.82]), Summary.of([0.90, 0.91, 0.92])

    assert low.interval() == (pytest.approx(0.81 - 4.302653 * 0.01 / math.sqrt(3)), pytest.approx(0.834841, abs=1e-6))
    assert high.above(low)
    assert not high.above(Summary.of([0.5, 0.9, 0.7]))
    assert not Summary.of([0.99]).above(low)


def test_groups_of_a_method_on_few_images_are_named_after_all_fit_images() -> None:
    """A method fitted to 3 of the 14 images is scored like one fitted to all, once all of them are assigned."""
    problem, fitted = one_fold()
    both = Clusters(k=3, fit=FINE[:3], test=np.concatenate([FINE, FINE]))
    verdicts = Verdicts(p_values=np.linspace(0, 1, 28), scores=np.zeros(28))
    few = Fitted(fine=both, tree=TREE, runs={3: both}, suggested_k=2, verdicts=verdicts)

    found = recipe_methods._with_all_fit_images(few, 14)

    assert scoring.score(problem, [found]) == scoring.score(problem, [fitted])
    assert len(found.runs[3].test) == len(found.runs[3].fit) == 14
    assert found.verdicts is not None
    np.testing.assert_array_equal(found.verdicts.p_values, verdicts.p_values[:14])
