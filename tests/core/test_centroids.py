"""The nearest clusters, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmcat_core.centroids import Centroids
from deepmcat_core.errors import ArtifactDamaged


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 40), d=st.integers(2, 32), n=st.integers(1, 50))
def test_faiss_equals_brute_force(seed: int, k: int, d: int, n: int) -> None:
    """Search gives numpy's nearest clusters and distances, for every k and n."""
    rng = np.random.default_rng(seed)
    vectors, embeddings = unit(rng, k, d), unit(rng, 7, d)

    ids, distances = Centroids(vectors).nearest(embeddings, n)

    expected = 1 - embeddings.astype(np.float64) @ vectors.astype(np.float64).T
    assert ids.shape == distances.shape == (7, min(n, k))
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, : min(n, k)], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, ids, axis=1), distances, atol=1e-5)


@pytest.mark.parametrize(
    "vectors",
    [np.zeros((0, 4)), np.zeros(4), np.full((2, 4), np.nan), np.ones((2, 4))],
    ids=["none", "one-dimensional", "not finite", "not unit"],
)
def test_bad_centroids_are_refused(vectors: np.ndarray) -> None:
    """Centroids that are not K finite unit vectors are refused."""
    with pytest.raises(ArtifactDamaged):
        Centroids(vectors.astype(np.float32))


def test_distances_stay_in_range() -> None:
    """Rounding never makes a distance negative or above 2."""
    vectors = np.eye(4, dtype=np.float32)

    _, distances = Centroids(vectors).nearest(np.concatenate([vectors, -vectors]), 4)

    assert distances.min() >= 0
    assert distances.max() <= 2
