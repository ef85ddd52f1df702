"""What an epoch looked like, and the signatures of training that goes nowhere.

From what users of DeepCluster and SwAV met: a loss stuck at ln K, one giant cluster, embeddings that all say the
same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import normalized_mutual_info_score

from deepmcat_trainer.pca import Pca

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SETTLING_EPOCHS = 5
STUCK_LOSS = 0.02  # within this share of ln K
GIANT_SHARE = 0.5
MIN_SPREAD = 0.1  # the standard deviation per dimension of unit features is 1/√F where they point everywhere
MIN_EFFECTIVE_RANK = 4.0  # six kinds of image well apart have 6 to 9; a network that learns nothing has 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Of the features of images as they are, not augmented.

    spread: standard deviation per dimension of the unit features, times √F. effective_rank: exp of the entropy of the
    features' variances.
    """

    spread: float
    effective_rank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """One epoch. epoch: from 1. loss: its mean. cross_entropy: the part of it that comes from classification, and
    chance: what that is where one guesses (ln K); None where nothing is classified.

    k: clusters, None where the objective makes none. nmi: to the assignment of the epoch before (arithmetic mean), None
    for the first. It shows how much the clusters still move; it is no measure of quality. spread, effective_rank: see
    Health. cluster_s: before the first step, for targets; train_s: for the steps. images_per_s: of the whole epoch.
    """

    epoch: int
    loss: float
    cross_entropy: float | None
    chance: float | None
    k: int | None
    nmi: float | None
    empty: int
    largest_share: float
    spread: float
    effective_rank: float
    cluster_s: float
    train_s: float
    images_per_s: float

    def line(self, epochs: int) -> str:
        """The line on the terminal."""
        return (
            f"epoch {self.epoch}/{epochs}: loss {self.loss:.3f}{self._classification()}, {self._clusters()}"
            f"{self.images_per_s:,.0f} images/s"
        )

    def _classification(self) -> str:
        if self.chance is None or self.cross_entropy is None:
            return ""
        part = "" if self.cross_entropy == self.loss else f", cross-entropy {self.cross_entropy:.3f}"
        return f"{part} (ln K {self.chance:.3f})"

    def _clusters(self) -> str:
        if self.k is None:
            return f"effective rank {self.effective_rank:.1f}, "
        nmi = "–" if self.nmi is None else f"{self.nmi:.3f}"
        empty = f"{self.empty} of {self.k} clusters empty, largest {self.largest_share:.1%}"
        return f"NMI to previous {nmi}, {empty}, "


def nmi(labels: Ints, previous: Ints | None) -> float | None:
    """Normalised mutual information with the arithmetic mean of the entropies."""
    if previous is None:
        return None
    return float(normalized_mutual_info_score(previous, labels, average_method="arithmetic"))


def largest_share(labels: Ints) -> float:
    """The share of images in the largest cluster."""
    return float(np.bincount(labels).max() / len(labels))


def empty(labels: Ints, k: int) -> int:
    """How many of k clusters have no image."""
    return k - len(np.unique(labels))


def health(pca: Pca) -> Health:
    """Of the features that `pca` was fitted on."""
    return Health(spread=spread(pca), effective_rank=effective_rank(pca))


def spread(pca: Pca) -> float:
    """Standard deviation per dimension of the unit features, times √F: 1 where they point everywhere, 0 collapsed."""
    return _spread(pca.direction)


def effective_rank(pca: Pca) -> float:
    """Exp of the entropy of the variances' shares (Roy and Vetterli 2007)."""
    return _rank(pca.spectrum)


def sample_health(features: Floats) -> Health:
    """Of some features (n, F); n need not reach F."""
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False).astype(np.float64)
    return Health(spread=_spread(float(np.linalg.norm(units.mean(axis=0)))), effective_rank=_rank(singular**2))


def _spread(direction: float) -> float:
    """From the length of the mean unit row."""
    return math.sqrt(max(0.0, 1.0 - direction**2))


def _rank(spectrum: npt.NDArray[np.float64]) -> float:
    total = spectrum.sum()
    if total <= 0:
        return 0.0
    shares = spectrum[spectrum > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _guesses(report: EpochReport) -> bool:
    if report.chance is None or report.cross_entropy is None:
        return False
    return abs(report.cross_entropy / report.chance - 1) < STUCK_LOSS


def warnings(report: EpochReport) -> dict[str, str]:
    """A sentence for each signature of failure that the epoch shows, by the signature's name."""
    found = {}
    settled = report.epoch >= SETTLING_EPOCHS
    if settled and _guesses(report):
        found["stuck"] = (
            f"the loss is within {STUCK_LOSS:.0%} of ln K: the encoder learns nothing from its clusters. "
            "Try fewer clusters, another learning rate (lr) or more images."
        )
    if report.largest_share > GIANT_SHARE:
        found["giant"] = (
            f"one cluster holds {report.largest_share:.0%} of the images. Try more clusters, "
            "or look whether the images are nearly all alike."
        )
    if settled and (report.spread < MIN_SPREAD or report.effective_rank < MIN_EFFECTIVE_RANK):
        found["collapsed"] = (
            f"the features have collapsed (spread {report.spread:.2f}, effective rank {report.effective_rank:.1f}): "
            "many images look the same to the encoder. Try a lower learning rate (lr) or the recipe `frozen`."
        )
    return found
