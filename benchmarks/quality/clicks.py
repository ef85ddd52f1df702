"""The human-cost curve: how right labels are after so many groups have been named. A click is a group named.

A person names a group by the class that most of its fit images have. Images of the test split are then labelled by
their group's name; where it has none, they count as wrong. Two orders:

- by size: what `deepmcat names export` and `deepmcat sheets` show. The groups of the suggested cut, the largest
  (by fit images) first. The count ends at the suggested number: where the goal is not reached by then, it is not
  reached.
- by cut: with n clicks, all n groups of the cut at n (`--set final.categories=n`). What the tree allows to a person
  who knows n; methods without a tree have it at the numbers they were run at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.quality.fitted import Clusters, Fitted
from benchmarks.quality.problems import Problem
from benchmarks.quality.task import MOST_GROUPS

from deepmcat_trainer import scores

Ints = npt.NDArray[np.int64]
Table = npt.NDArray[np.int64]

ACCURACY, WORST = 0.99, 0.95
"""Labels are good enough where accuracy and every class's recall reach these."""


def count(problem: Problem, fits: Sequence[Fitted]) -> dict[str, Any]:
    """Both curves, and the clicks until labels are good enough by each: None where they never are."""
    by_cut = _by_cut(problem, fits)
    by_size = _by_size(problem, fits)
    return {
        "by_cut": by_cut,
        "by_size": by_size,
        "until_by_cut": until(by_cut),
        "until_by_size": until(by_size) if by_size else None,
    }


def until(curve: Sequence[Sequence[float]]) -> int | None:
    """The first n of a curve of (n, accuracy, worst recall, …) where both are good enough."""
    return next((int(n) for n, accuracy, worst, *_ in curve if accuracy >= ACCURACY and worst >= WORST), None)


def point(n: int, pairs: Sequence[tuple[Table, Ints]]) -> list[float]:
    """(n, accuracy, worst recall, mean recall) over folds, each a test table (C, k) and the class of each group."""
    right = np.zeros(len(pairs[0][0]))
    totals = np.zeros_like(right)
    for table, mapping in pairs:
        mapped = np.flatnonzero(mapping >= 0)
        np.add.at(right, mapping[mapped], table[mapping[mapped], mapped])
        totals += table.sum(axis=1)
    recalls = right[totals > 0] / totals[totals > 0]
    return [n, *(round(float(value), 5) for value in (right.sum() / totals.sum(), recalls.min(), recalls.mean()))]


def named(table: Table, fit_table: Table, n: int) -> Ints:
    """The class of each group when the `n` largest by fit images have been named; −1 for the others."""
    mapping = scores.majority(fit_table)
    largest = np.argsort(-fit_table.sum(axis=0), kind="stable")[:n]
    kept = np.full(table.shape[1], -1)
    kept[largest] = mapping[largest]
    return kept


def _by_cut(problem: Problem, fits: Sequence[Fitted]) -> list[list[float]]:
    shared = sorted(set.intersection(*(set(fitted.numbers(MOST_GROUPS)) for fitted in fits)))
    curve = []
    for n in shared:
        tables = _tables(problem, [fitted.at(n) for fitted in fits])
        curve.append(point(n, [(table, scores.majority(fit_table)) for table, fit_table in tables]))
    return curve


def _by_size(problem: Problem, fits: Sequence[Fitted]) -> list[list[float]]:
    """Empty where a method suggests no cut."""
    suggested = [fitted.suggested_k for fitted in fits if fitted.suggested_k is not None]
    if len(suggested) < len(fits):
        return []
    tables = _tables(problem, [fitted.at(k) for fitted, k in zip(fits, suggested, strict=True)])
    return [
        point(n, [(table, named(table, fit_table, n)) for table, fit_table in tables])
        for n in range(1, max(suggested) + 1)
    ]


def _tables(problem: Problem, cuts: Sequence[Clusters | None]) -> list[tuple[Table, Table]]:
    """The contingency tables (C, k) of test and fit images, a pair per fold."""
    return [
        (
            scores.contingency(problem.truth[fold.test], cut.test, len(problem.classes), cut.k),
            scores.contingency(problem.truth[fold.fit], cut.fit, len(problem.classes), cut.k),
        )
        for fold, cut in zip(problem.folds, cuts, strict=True)
        if cut is not None
    ]
