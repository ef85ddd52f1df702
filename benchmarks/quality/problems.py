"""What is to be sorted: image sets, how uneven they are, and which images fit, calibrate and test.

Imbalance is made in the fit and calibration splits only. The test split keeps every image, so that the recall of a
rare class is measured on as many images as that of a common one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from benchmarks.quality.corpus import SAMPLING_SEED, Corpus

from deepmcat_trainer.splits import Split

Ints = npt.NDArray[np.int64]

MEDNIST = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
PLANES = ("scout_axial", "scout_coronal", "scout_sagittal")
EVERYTHING = {name: name for name in (*MEDNIST, *PLANES, "blood_smear")} | {"chest_xray": "CXR"}
RATIOS = (10, 100)
PERMUTATIONS = 3
FOLDS = 5
LEFT_OUT_FIT = 1000
"""At most so many images a class fit where one class is left out: there are six such problems for each seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Rows of the corpus: what trains and clusters, what calibrates, and what only scores."""

    fit: Ints
    calibration: Ints
    test: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """name: "mednist/100:1/p2". classes: names. truth: (N,) the class of each row of the corpus, −1 outside.

    folds: one, or several whose test images are scored together. left_out: a class that neither fits nor calibrates.
    """

    name: str
    classes: tuple[str, ...]
    truth: Ints
    folds: tuple[Fold, ...]
    left_out: int | None = None

    @property
    def c(self) -> int:
        """The number of classes to find."""
        return len(self.classes) - (self.left_out is not None)

    @property
    def fit_images(self) -> int:
        """The images that fit, over all folds."""
        return sum(len(fold.fit) for fold in self.folds)

    def fit_counts(self) -> dict[str, int]:
        """Images of each class that fit, of the first fold."""
        counts = np.bincount(self.truth[self.folds[0].fit], minlength=len(self.classes))
        return dict(zip(self.classes, map(int, counts), strict=True))

    def digest(self) -> str:
        """SHA-256 over which images do what, and their classes."""
        digest = hashlib.sha256(repr((self.name, self.classes, self.left_out)).encode())
        for fold in self.folds:
            for rows in (fold.fit, fold.calibration, fold.test):
                digest.update(rows.tobytes() + b"\0" + self.truth[rows].tobytes() + b"\0")
        return digest.hexdigest()


def every(corpus: Corpus) -> Iterator[Problem]:
    """All problems, those of whole image sets first."""
    mednist = _by_split(corpus, "mednist/balanced", {name: name for name in MEDNIST})
    yield mednist
    for ratio in RATIOS:
        for permutation in range(PERMUTATIONS):
            yield imbalanced(mednist, ratio, permutation)
    yield patient_folds(corpus, "cardiac/5 folds", PLANES)
    yield _by_split(corpus, "everything/as it is", EVERYTHING)
    for code in range(len(MEDNIST)):
        yield without(mednist, code)


def imbalanced(problem: Problem, ratio: int, permutation: int) -> Problem:
    """The problem with fit and calibration images thinned to `geometric` counts, in the order of `ranks`."""
    fold, rank = problem.folds[0], ranks(len(problem.classes), permutation)
    thinned = {}
    for part, rows in (("fit", fold.fit), ("calibration", fold.calibration)):
        sizes = np.bincount(problem.truth[rows], minlength=len(problem.classes))
        wanted = geometric(int(sizes.min()), ratio, len(problem.classes))
        thinned[part] = _thinned(rows, problem.truth, wanted[rank])
    name = f"{problem.name.partition('/')[0]}/{ratio}:1/p{permutation}"
    return replace(problem, name=name, folds=(replace(fold, **thinned),))


def ranks(classes: int, permutation: int) -> Ints:
    """The rank of each class by size, 0 the largest: one random order, turned so that another is the rarest."""
    order = np.random.default_rng(SAMPLING_SEED).permutation(classes)
    return np.argsort(np.roll(order, permutation * classes // PERMUTATIONS)).astype(np.int64)


def geometric(largest: int, ratio: float, classes: int) -> Ints:
    """Counts that fall geometrically from `largest` to `largest` / `ratio`; never below 1."""
    steps = np.arange(classes) / max(1, classes - 1)
    return np.maximum(1, np.rint(largest * ratio**-steps)).astype(np.int64)


def patient_folds(corpus: Corpus, name: str, labels: tuple[str, ...]) -> Problem:
    """Folds by patient over all images of `labels`, whatever their split; nothing is left to calibrate on."""
    truth = _truth(corpus, {label: label for label in labels}, labels)
    rows = corpus.rows[truth[corpus.rows] >= 0]
    patients = np.unique(corpus.patients[rows])
    shuffled = np.random.default_rng(SAMPLING_SEED).permutation(patients)
    fold_of = {patient: i % FOLDS for i, patient in enumerate(shuffled)}
    folds_of = np.asarray([fold_of[patient] for patient in corpus.patients[rows]], dtype=np.int64)
    folds = tuple(Fold(fit=rows[folds_of != i], calibration=rows[:0], test=rows[folds_of == i]) for i in range(FOLDS))
    return Problem(name=name, classes=labels, truth=truth, folds=tuple(fold for fold in folds if len(fold.test)))


def without(problem: Problem, code: int) -> Problem:
    """The problem with class `code` left out of fit and calibration, and at most LEFT_OUT_FIT images a class to fit."""
    fold = problem.folds[0]
    known = replace(
        fold,
        fit=_thinned(
            fold.fit[problem.truth[fold.fit] != code], problem.truth, np.full(len(problem.classes), LEFT_OUT_FIT)
        ),
        calibration=fold.calibration[problem.truth[fold.calibration] != code],
    )
    name = f"{problem.name.partition('/')[0]}/without {problem.classes[code]}"
    return replace(problem, name=name, folds=(known,), left_out=code)


def _by_split(corpus: Corpus, name: str, classes: Mapping[str, str]) -> Problem:
    names = tuple(dict.fromkeys(classes.values()))
    truth = _truth(corpus, classes, names)
    rows = corpus.rows[truth[corpus.rows] >= 0]
    fit, calibration, test = (rows[corpus.splits[rows] == split.value] for split in Split)
    return Problem(name=name, classes=names, truth=truth, folds=(Fold(fit=fit, calibration=calibration, test=test),))


def _truth(corpus: Corpus, classes: Mapping[str, str], names: tuple[str, ...]) -> Ints:
    codes = {label: names.index(name) for label, name in classes.items()}
    return np.asarray([codes.get(str(label), -1) for label in corpus.labels], dtype=np.int64)


def _thinned(rows: Ints, truth: Ints, wanted: Ints) -> Ints:
    """At most wanted[c] of the rows of each class c: of one random order per class, so that thinner lies in thicker."""
    kept = []
    for code, count in enumerate(wanted):
        members = rows[truth[rows] == code]
        kept.append(np.random.default_rng([SAMPLING_SEED, code]).permutation(members)[:count])
    return np.sort(np.concatenate(kept))
