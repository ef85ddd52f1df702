"""From embeddings to assignments."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmcat_core.assigner import Assigner, Assignment, Candidate
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import UNKNOWN, Catalog, Category
from deepmcat_core.centroids import Centroids


def make(k: int = 6, d: int = 8, scores: int = 200) -> Assigner:
    """k random clusters in three categories, one calibration group with mean distances of 0.1."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(k, d))
    calibration = Calibration(
        images=scores,
        scores=np.linspace(0, 2, scores, dtype=np.float32),
        offsets=np.array([0, scores]),
        groups=np.zeros(k, dtype=np.int64),
        mean_distances=np.full(k, 0.1, dtype=np.float32),
    )
    categories = tuple(Category(id=f"c-{i}", name=f"name {i}", clusters=tuple(range(i, k, 3))) for i in range(3))
    centroids = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Assigner(Centroids(centroids), calibration, Catalog(version=1, k=k, categories=categories))


def test_a_centroid_is_assigned_to_itself() -> None:
    """An embedding at a centroid has that cluster, its category, distance 0 and is no outlier."""
    assigner = make()

    for cluster, assignment in enumerate(assigner.assign(assigner.centroids.vectors)):
        assert assignment.cluster_id == cluster
        assert assignment.category_id == f"c-{cluster % 3}"
        assert assignment.distance == pytest.approx(0, abs=1e-6)
        assert assignment.outlier is False
        assert assignment.candidates[0].category_id == assignment.category_id


def test_an_outlier_is_unknown_and_keeps_its_candidates() -> None:
    """Far from every centroid the category is unknown, and the nearest categories are still told."""
    assigner = make()
    far = -assigner.centroids.vectors.sum(axis=0, keepdims=True)

    (assignment,) = assigner.assign((far / np.linalg.norm(far)).astype(np.float32))

    assert assignment.outlier is True
    assert (assignment.category_id, assignment.category) == (UNKNOWN, UNKNOWN)
    assert len({c.category_id for c in assignment.candidates}) == 3


def test_without_verdict_the_category_stands() -> None:
    """With too few calibration images there is no p-value, no verdict, and the nearest category is answered."""
    assigner = make(scores=50)
    far = -assigner.centroids.vectors.sum(axis=0, keepdims=True)

    (assignment,) = assigner.assign((far / np.linalg.norm(far)).astype(np.float32))

    assert assignment.p_value is None
    assert assignment.outlier is None
    assert assignment.category_id != UNKNOWN


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), k=st.integers(3, 80), top_k=st.integers(1, 5))
def test_candidates_are_the_nearest_categories(seed: int, k: int, top_k: int) -> None:
    """Candidates are different categories, nearest first, each with its nearest cluster, as brute force finds them."""
    assigner = make(k=k)
    x = np.random.default_rng(seed).normal(size=(3, 8))
    embeddings = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    for embedding, assignment in zip(embeddings, assigner.assign(embeddings, top_k), strict=True):
        distances = 1 - assigner.centroids.vectors @ embedding
        best = sorted((float(distances[list(c.clusters)].min()), c.id) for c in assigner.catalog.active)[:top_k]
        assert [c.category_id for c in assignment.candidates] == [i for _, i in best]
        np.testing.assert_allclose([c.distance for c in assignment.candidates], [d for d, _ in best], atol=1e-5)


def test_no_embeddings_no_assignments() -> None:
    """An empty batch has an empty answer."""
    assert make().assign(np.zeros((0, 8), dtype=np.float32)) == []


def frame(category: str, distance: float, p: float | None) -> Assignment:
    candidate = Candidate(category_id=category, category=category, cluster_id=0, distance=distance)
    outlier = None if p is None else p < 0.01
    return Assignment(
        category_id=UNKNOWN if outlier else category,
        category=UNKNOWN if outlier else category,
        cluster_id=0,
        distance=distance,
        p_value=p,
        outlier=outlier,
        candidates=(candidate,),
    )


def test_frames_vote_by_p_value() -> None:
    """One typical frame outweighs two that are nearly outliers; its nearest frame is named."""
    frames = [frame("a", 0.9, 0.02), frame("b", 0.2, 0.8), frame("a", 0.8, 0.03)]

    combined, named = make().combine(frames)

    assert (combined.category_id, named) == ("b", 1)
    assert combined.p_value == pytest.approx(min(1, 2 * 0.03))


def test_frames_that_are_all_outliers_make_an_outlier() -> None:
    """A multi-frame image is unknown where twice the median p-value is below alpha, and not where only one frame is."""
    assigner = make()

    assert assigner.combine([frame("a", 1, 0.001)] * 3)[0].category_id == UNKNOWN
    assert assigner.combine([frame("a", 1, 0.001), frame("a", 0.1, 0.5), frame("a", 0.1, 0.5)])[0].outlier is False


def test_frames_without_verdict_are_counted() -> None:
    """Without p-values the most frequent category wins, and there is no verdict."""
    combined, _ = make().combine([frame("a", 0.1, None), frame("b", 0.3, None), frame("b", 0.2, None)])

    assert combined.category_id == "b"
    assert combined.distance == 0.2
    assert combined.outlier is None


def test_one_frame_is_its_own_answer() -> None:
    """A single-frame image is answered by its frame, unchanged."""
    only = frame("a", 0.1, 0.4)

    assert make().combine([only]) == (only, 0)


def test_assignments_are_immutable() -> None:
    """What travels is frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame("a", 0.1, 0.4).distance = 0  # type: ignore[misc]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(3, 300), wanted=st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_images_assigned_together_are_assigned_as_each_alone(seed: int, k: int, wanted: list[int]) -> None:
    """To the last bit, whatever number of frames and candidates each of them has."""
    assigner, rng = make(k=k), np.random.default_rng(seed)
    images = []
    for top_k in wanted:
        x = rng.normal(size=(rng.integers(1, 4), 8))
        images.append(((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), top_k))

    assert assigner.assign_each(images) == [assigner.assign(*image) for image in images]
