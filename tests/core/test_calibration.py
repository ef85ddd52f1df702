"""p-values, groups and verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage

from deepmcat_core.calibration import MIN_GROUP, MIN_VERDICT, Calibration
from deepmcat_core.errors import ArtifactDamaged
from deepmcat_core.tree import Merge, MergeTree


def tree_of(k: int, seed: int = 0) -> MergeTree:
    points = np.random.default_rng(seed).normal(size=(k, 3))
    merges = tuple(Merge(left=int(a), right=int(b), height=float(h)) for a, b, h, _ in linkage(points, "average"))
    return MergeTree(k=k, merges=merges, linkage="average")


def fit(clusters: np.ndarray, distances: np.ndarray, k: int) -> Calibration:
    rng = np.random.default_rng(1)
    fit_clusters = rng.integers(0, k, size=5 * k)
    fit_distances = rng.uniform(0.1, 0.2, size=5 * k).astype(np.float32)
    return Calibration.fit(
        tree=tree_of(k),
        fit_clusters=fit_clusters,
        fit_distances=fit_distances,
        clusters=clusters,
        distances=distances.astype(np.float32),
    )


def test_p_value_is_the_conformal_formula() -> None:
    """p = (1 + #{s ≥ score}) / (n + 1), ties counted as at least as far."""
    calibration = Calibration(
        images=100,
        scores=np.arange(1, 101, dtype=np.float32),
        offsets=np.array([0, 100]),
        groups=np.array([0]),
        mean_distances=np.array([1], dtype=np.float32),
    )

    p = calibration.p_values(np.zeros(4, dtype=np.int64), np.array([0.5, 1, 100, 101], dtype=np.float32))

    np.testing.assert_allclose(p, [101 / 101, 101 / 101, 2 / 101, 1 / 101])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 12), n=st.integers(0, 900))
def test_each_cluster_has_the_smallest_group_that_is_large_enough(seed: int, k: int, n: int) -> None:
    """A cluster's group has at least MIN_GROUP scores, or is everything; no smaller node above it has as many."""
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, k, size=n)

    calibration = fit(clusters, rng.uniform(0, 1, size=n), k)

    tree, counts = tree_of(k), np.bincount(clusters, minlength=k)
    below: list[set[int]] = [{c} for c in range(k)]
    for merge in tree.merges:
        below.append(below[merge.left] | below[merge.right])
    for cluster in range(k):
        sizes = sorted(int(sum(counts[list(b)])) for b in below if cluster in b)
        expected = next((s for s in sizes if s >= MIN_GROUP), n)
        group = calibration.groups[cluster]
        assert calibration.offsets[group + 1] - calibration.offsets[group] == expected


def test_false_rejection_is_bounded() -> None:
    """Images like those of the calibration split are outliers in about alpha of the cases, not more."""
    rng = np.random.default_rng(5)
    k, n = 8, 4000
    draw = lambda: (rng.integers(0, k, size=n), rng.gamma(4, 0.02, size=n).astype(np.float32))  # noqa: E731
    clusters, distances = draw()
    calibration = fit(clusters, distances, k)
    clusters, distances = draw()

    rejected = (calibration.p_values(clusters, distances) < calibration.alpha).sum()

    assert rejected <= n * 0.01 + 4 * np.sqrt(n * 0.01 * 0.99)


@pytest.mark.parametrize(("n", "verdicts"), [(0, False), (MIN_VERDICT - 1, False), (MIN_VERDICT, True)])
def test_too_few_images_give_no_verdict(n: int, verdicts: bool) -> None:
    """Below 99 calibration images there is no p-value, and the note says so."""
    calibration = fit(np.zeros(n, dtype=np.int64), np.full(n, 0.1), 3)

    p = calibration.p_values(np.array([0]), np.array([0.1], dtype=np.float32))

    assert calibration.has_verdicts is verdicts
    assert bool(np.isnan(p[0])) is not verdicts
    assert calibration.note().startswith("No outlier verdicts") is not verdicts


def test_verdict_at_the_smallest_size_can_be_reached() -> None:
    """With 99 scores an image farther than all of them has p = .01, which is no outlier; with 100 it is one."""
    for n, outlier in ((99, False), (100, True)):
        calibration = fit(np.zeros(n, dtype=np.int64), np.full(n, 0.1), 3)
        p = calibration.p_values(np.array([0]), np.array([1], dtype=np.float32))[0]
        assert bool(p < calibration.alpha) is outlier


def test_images_in_nested_groups_count_once() -> None:
    """Cluster 0 has 300 images and a group of its own; the root holds them again, for the others."""
    clusters = np.array([0] * 300 + [1] * 50)

    calibration = fit(clusters, np.linspace(0.1, 0.2, 350), 2)

    assert (calibration.images, len(calibration.scores)) == (350, 300 + 350)
    assert "350 calibration images in 2 groups" in calibration.note()


@pytest.mark.parametrize(("alpha", "needed"), [(0.01, 99), (0.05, 99), (0.001, 999)])
def test_a_smaller_alpha_needs_more_images(alpha: float, needed: int) -> None:
    """No verdict is announced that could never be "outlier": an alpha of .001 needs 999 calibration images."""
    for n in (needed - 1, needed):
        calibration = Calibration(
            images=n,
            scores=np.zeros(n, dtype=np.float32),
            offsets=np.array([0, n]),
            groups=np.array([0]),
            mean_distances=np.ones(1, dtype=np.float32),
            alpha=alpha,
        )
        assert calibration.has_verdicts is (n == needed)
        assert (f"at least {needed} are needed" in calibration.note()) is (n < needed)


def test_degenerate_clusters_get_the_overall_mean() -> None:
    """A cluster of one image, or whose images are all at its centre, never divides by zero."""
    calibration = Calibration.fit(
        tree=tree_of(3),
        fit_clusters=np.array([0, 0, 1, 2, 2]),
        fit_distances=np.array([0, 0, 0.3, 0.2, 0.2], dtype=np.float32),
        clusters=np.array([0]),
        distances=np.array([0.1], dtype=np.float32),
    )

    np.testing.assert_allclose(calibration.mean_distances, [0.14, 0.14, 0.2], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 11},
        {"images": 9},
        {"offsets": np.array([0, 5])},
        {"offsets": np.array([0, 12, 10])},
        {"groups": np.array([0, 1])},
        {"mean_distances": np.array([0.0, 1.0], dtype=np.float32)},
        {"scores": np.full(10, np.nan, dtype=np.float32)},
    ],
)
def test_damaged_tables_are_refused(changes: dict[str, np.ndarray]) -> None:
    """Tables that do not fit together are refused at load."""
    good = {
        "images": 10,
        "scores": np.arange(10, dtype=np.float32),
        "offsets": np.array([0, 10]),
        "groups": np.array([0, 0]),
        "mean_distances": np.ones(2, dtype=np.float32),
    }
    Calibration(**good)
    with pytest.raises(ArtifactDamaged):
        Calibration(**{**good, **changes})
