"""The problems of the quality bench: who fits, who calibrates, who only scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.quality import cells, problems
from benchmarks.quality.corpus import Corpus
from benchmarks.quality.methods import METHODS

PER_CLASS = {"fit": 400, "calibration": 60, "test": 50}


@pytest.fixture(name="corpus")
def corpus_fixture() -> Corpus:
    """Every label that problems know, the cardiac planes from ten patients."""
    labels, splits, patients = [], [], []
    for label in (*problems.MEDNIST, *problems.PLANES, "blood_smear", "chest_xray"):
        for split, count in PER_CLASS.items():
            labels += [label] * count
            splits += [split] * count
            patients += [f"patient {i % 10}" if label in problems.PLANES else "" for i in range(count)]
    n = len(labels)
    return Corpus(
        path=Path("nowhere"), images=np.zeros((n, 2, 2), dtype=np.uint8), labels=np.asarray(labels),
        splits=np.asarray(splits), patients=np.asarray(patients), pixels=np.asarray([f"{i:06d}" for i in range(n)]),
        rows=np.arange(n),
    )  # fmt: skip


@pytest.fixture(name="by_name")
def by_name_fixture(corpus: Corpus) -> dict[str, problems.Problem]:
    """All problems by name."""
    return {problem.name: problem for problem in problems.every(corpus)}


def counts(problem: problems.Problem, part: str) -> list[int]:
    """Images of each class in a part of the first fold."""
    rows = getattr(problem.folds[0], part)
    return np.bincount(problem.truth[rows], minlength=len(problem.classes)).tolist()


def test_counts_fall_geometrically() -> None:
    """From the largest class to the largest over the ratio, in equal steps of the logarithm."""
    assert problems.geometric(2363, 100, 6).tolist() == [2363, 941, 375, 149, 59, 24]
    assert problems.geometric(10, 1, 3).tolist() == [10, 10, 10]


def test_imbalance_is_made_in_fit_and_calibration_only(by_name: dict[str, problems.Problem]) -> None:
    """The test split keeps every image, whatever the ratio."""
    balanced, uneven = by_name["mednist/balanced"], by_name["mednist/100:1/p1"]

    assert sorted(counts(uneven, "fit")) == sorted(problems.geometric(400, 100, 6).tolist())
    assert sorted(counts(uneven, "calibration")) == sorted(problems.geometric(60, 100, 6).tolist())
    np.testing.assert_array_equal(uneven.folds[0].test, balanced.folds[0].test)
    assert set(uneven.folds[0].fit) <= set(balanced.folds[0].fit)


def test_permutations_make_different_classes_rare(by_name: dict[str, problems.Problem]) -> None:
    """No class is the rarest in two permutations."""
    rarest = [int(np.argmin(counts(by_name[f"mednist/10:1/p{p}"], "fit"))) for p in range(problems.PERMUTATIONS)]

    assert len(set(rarest)) == problems.PERMUTATIONS


def test_folds_keep_patients_apart(corpus: Corpus, by_name: dict[str, problems.Problem]) -> None:
    """Every image is tested once, on a model that has seen no image of its patient."""
    cardiac = by_name["cardiac/5 folds"]
    tested = np.concatenate([fold.test for fold in cardiac.folds])

    assert sorted(tested) == sorted(corpus.rows[np.isin(corpus.labels, problems.PLANES)])
    for fold in cardiac.folds:
        assert not set(corpus.patients[fold.fit]) & set(corpus.patients[fold.test])


def test_what_is_one_category_counts_as_one(corpus: Corpus, by_name: dict[str, problems.Problem]) -> None:
    """The chest X-rays of two sets are one class of everything, and there are ten."""
    everything = by_name["everything/as it is"]
    xrays = np.isin(corpus.labels, ["CXR", "chest_xray"])

    assert everything.c == 10
    assert set(everything.truth[xrays]) == {everything.classes.index("CXR")}


def test_a_class_left_out_is_only_tested(by_name: dict[str, problems.Problem]) -> None:
    """Its images are in the test split and nowhere else."""
    problem = by_name["mednist/without Hand"]
    assert problem.left_out is not None
    hand = problem.left_out

    assert counts(problem, "fit")[hand] == counts(problem, "calibration")[hand] == 0
    assert counts(problem, "test")[hand] == PER_CLASS["test"]


def test_a_digest_follows_labels_and_limits(corpus: Corpus) -> None:
    """Another label or another choice of images is another corpus."""
    relabelled = corpus.labels.copy()
    relabelled[0] = "Hand"
    changed = Corpus(**{name: getattr(corpus, name) for name in Corpus.__slots__} | {"labels": relabelled})

    assert len({corpus.digest, changed.digest, corpus.limited(100).digest}) == 3
    assert len(corpus.limited(100).rows) == 100 * 11


def test_results_hang_on_the_images_of_their_problem_alone(corpus: Corpus) -> None:
    """Where an image of the cardiac set looks different, cells of MedNIST keep their hash and cells with it do not."""
    pixels = corpus.pixels.copy()
    pixels[np.flatnonzero(corpus.labels == "scout_axial")[0]] = "changed"
    changed = Corpus(**{name: getattr(corpus, name) for name in Corpus.__slots__} | {"pixels": pixels})
    before, after = (
        {
            cell.problem.name: cell.hash()
            for cell in cells.every(list(problems.every(made)), METHODS[:1], [0], made.digest_of)
        }
        for made in (corpus, changed)
    )
    assert {name for name in before if before[name] != after[name]} == {"cardiac/5 folds", "everything/as it is"}
