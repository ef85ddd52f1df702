"""The scores of a cell: those of `deepmcat evaluate` at several numbers of groups, the cut, the clicks.

Where a problem has folds, each fold is a clustering of its own. Every test image is in one fold; what counts images
(purities and recalls) counts them over all folds, and agreement scores are means over the folds' images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.quality import clicks
from benchmarks.quality.fitted import Clusters, Fitted
from benchmarks.quality.problems import Problem
from benchmarks.quality.task import MOST_GROUPS
from sklearn.metrics import adjusted_rand_score

from deepmcat_trainer.evaluate import CUTS, CutScores, Labelled, score_groups

Ints = npt.NDArray[np.int64]

OF_A_FOLD = ("inverse_purity", "nmi", "ami", "ari", "accuracy")


def score(problem: Problem, fits: Sequence[Fitted]) -> dict[str, Any]:
    """Scores of a method's `fits`, one a fold."""
    levels = {f"{factor:g} C": [math.ceil(factor * problem.c)] * len(fits) for factor in CUTS}
    levels["fine"] = [fitted.fine.k for fitted in fits]
    suggested = [fitted.suggested_k for fitted in fits if fitted.suggested_k is not None]
    if suggested:
        levels["suggested"] = suggested
    cuts = {level: scored for level, ks in levels.items() if (scored := _at(problem, fits, ks)) is not None}
    return {
        "images": sum(len(fold.test) for fold in problem.folds),
        "levels": cuts,
        "aris": _aris(problem, fits),
        "clicks": clicks.count(problem, fits),
    }


def _at(problem: Problem, fits: Sequence[Fitted], ks: Sequence[int]) -> dict[str, float] | None:
    """Scores where fold i is cut into ks[i] groups; None where one of them has no such cut."""
    cut = [fitted.at(k) for fitted, k in zip(fits, ks, strict=True)]
    found = [clusters for clusters in cut if clusters is not None]
    if len(found) < len(fits):
        return None
    truth = [(problem.truth[fold.fit], problem.truth[fold.test]) for fold in problem.folds]
    together = asdict(_pooled(found, truth))
    if len(fits) > 1:
        of_folds = [asdict(_pooled([clusters], [classes])) for clusters, classes in zip(found, truth, strict=True)]
        weights = [len(clusters.test) for clusters in found]
        together |= {
            name: float(np.average([scores[name] for scores in of_folds], weights=weights)) for name in OF_A_FOLD
        }
    return together | {"k": float(np.mean([clusters.k for clusters in found]))}


def _pooled(cuts: Sequence[Clusters], truth: Sequence[tuple[Ints, Ints]]) -> CutScores:
    """The product's scores, with the groups of each fold kept apart."""
    offsets = np.cumsum([0, *(clusters.k for clusters in cuts)])
    fit, test = (
        Labelled(
            classes=np.concatenate([classes[side] for classes in truth]),
            clusters=np.concatenate(
                [(c.fit, c.test)[side] + offset for c, offset in zip(cuts, offsets[:-1], strict=True)]
            ),
        )
        for side in (0, 1)
    )
    k = int(offsets[-1])
    return score_groups(np.arange(k), k, test, fit)


def _aris(problem: Problem, fits: Sequence[Fitted]) -> dict[str, Any] | None:
    """The ARI at every cut from 2 groups on, of trees: how good the suggested cut is beside the best. None without."""
    suggested = [fitted.suggested_k for fitted in fits if fitted.tree is not None and fitted.suggested_k is not None]
    if len(suggested) < len(fits):
        return None
    weights = [len(fold.test) for fold in problem.folds]
    by_fold = []
    for fitted, fold in zip(fits, problem.folds, strict=True):
        cuts = [fitted.at(k) for k in range(2, MOST_GROUPS + 1)]
        by_fold.append([adjusted_rand_score(problem.truth[fold.test], cut.test) for cut in cuts if cut is not None])
    best = float(np.average([max(aris) for aris in by_fold], weights=weights))
    chosen = _at(problem, fits, suggested)
    assert chosen is not None
    return {
        "best": best,
        "best_k": float(np.mean([2 + int(np.argmax(aris)) for aris in by_fold])),
        "suggested": chosen["ari"],
        "suggested_k": chosen["k"],
        "by_k": [round(float(a), 4) for a in np.average(by_fold, axis=0, weights=weights)],
    }
