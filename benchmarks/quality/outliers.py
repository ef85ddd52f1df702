"""How well images of a class that was left out are told apart, and how often usual images are rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.quality.fitted import Verdicts
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ALPHA = 0.01
CAUGHT = 0.95


def false_rejection(p_values: Doubles) -> dict[str, Any] | None:
    """The share of usual images with p below ALPHA; None where there are no verdicts.

    interval: exact 95 % binomial (Clopper and Pearson 1934). It is the chance of which images were tested, given this
    calibration; the calibration images are a draw too, which it does not know.
    """
    known = p_values[~np.isnan(p_values)]
    if len(known) == 0:
        return None
    rejected = int((known < ALPHA).sum())
    low, high = clopper_pearson(rejected, len(known))
    return {
        "images": len(known),
        "rejected": rejected,
        "share": rejected / len(known),
        "interval": [low, high],
        "within": low <= ALPHA <= high,
    }


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a share, of `hits` in `n`."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def separation(verdicts: Verdicts, unusual: Bools) -> dict[str, Any] | None:
    """AUROC and FPR95 of the images `unusual` (n,) against the others; None where there are no verdicts.

    by p-value, which is what the server gives; and by the score under it, which has fewer ties.
    """
    if np.isnan(verdicts.p_values).any():
        return None
    by_p, by_score = 1 - verdicts.p_values, verdicts.scores
    return {
        "auroc": float(roc_auc_score(unusual, by_p)),
        "auroc_score": float(roc_auc_score(unusual, by_score)),
        "fpr95": fpr_at(unusual, by_p),
        "fpr95_score": fpr_at(unusual, by_score),
        "caught": float((verdicts.p_values[unusual] < ALPHA).mean()),
    }


def fpr_at(unusual: Bools, scores: Doubles, caught: float = CAUGHT) -> float:
    """The share of usual images rejected by the strictest threshold that catches `caught` of the unusual ones."""
    false, true, _ = roc_curve(unusual, scores, drop_intermediate=False)
    return float(false[np.searchsorted(true, caught, side="left")])
