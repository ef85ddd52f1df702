"""The nearest neighbours of every image: exact for few, near enough for many."""

from __future__ import annotations

import numpy as np
import pytest

from deepmcat_trainer.neighbours import RECALL, nearest_neighbours


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def common(found, exact):
    """The share of neighbours that two answers have in common."""
    pairs = zip(found.indices, exact.indices, strict=True)
    return np.mean([len(np.intersect1d(*pair)) / len(pair[0]) for pair in pairs])


@pytest.fixture(name="kinds", scope="module")
def kinds_fixture():
    """3,000 embeddings of 20 kinds, (3000, 16)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 16))
    return unit(centres[rng.integers(0, 20, 3000)] + 0.5 * rng.normal(size=(3000, 16)))


def test_exact_neighbours_are_those_of_the_full_matrix(kinds):
    """Up to the bound the answer is that of all pairs, most similar first, without the image itself."""
    found = nearest_neighbours(kinds, 7)
    pairs = kinds @ kinds.T
    np.fill_diagonal(pairs, -np.inf)
    np.testing.assert_allclose(found.similarities, -np.sort(-pairs, axis=1)[:, :7], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(pairs, found.indices, axis=1), found.similarities, atol=1e-5)
    assert (found.indices.dtype, found.similarities.dtype, found.recall) == (np.int32, np.float32, 1.0)


def test_above_the_bound_the_measured_recall_is_the_true_one(kinds):
    """An inexact search reaches the recall that is promised, and says what it reached."""
    found = nearest_neighbours(kinds, 10, exact_up_to=100)
    exact = nearest_neighbours(kinds, 10)
    assert found.recall >= RECALL
    assert abs(found.recall - common(found, exact)) < 0.02
    assert not (found.indices == np.arange(3000)[:, None]).any()


def test_more_cells_are_searched_until_the_recall_is_reached():
    """Where neighbours lie scattered over cells, as in noise of many dimensions, the first probes are not enough."""
    noise = unit(np.random.default_rng(1).normal(size=(4000, 64)))
    found = nearest_neighbours(noise, 10, exact_up_to=100)
    exact = nearest_neighbours(noise, 10)
    assert found.recall >= RECALL
    assert common(found, exact) > RECALL - 0.02


@pytest.mark.parametrize("exact_up_to", [1000, 10])
def test_doubles_are_neighbours_and_the_image_itself_never(kinds, exact_up_to):
    """Identical images tie with themselves: more of them than neighbours are asked for, fewer, and none."""
    embeddings = np.concatenate([np.repeat(kinds[:1], 40, axis=0), np.repeat(kinds[1:2], 3, axis=0), kinds[2:202]])
    found = nearest_neighbours(embeddings, 5, exact_up_to=exact_up_to)
    assert not (found.indices == np.arange(len(embeddings))[:, None]).any()
    assert (found.indices[:40] < 40).all()
    for row in range(40, 43):
        assert set(found.indices[row, :2]) == {40, 41, 42} - {row}
    assert all(len(set(row)) == 5 for row in found.indices)


@pytest.mark.parametrize("exact_up_to", [1000, 1])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_more_neighbours_than_others_are_all_others(kinds, n, exact_up_to):
    """Few images have few neighbours: each has all the others."""
    found = nearest_neighbours(kinds[:n], 10, exact_up_to=exact_up_to)
    assert found.indices.shape == found.similarities.shape == (n, n - 1)
    assert all(set(found.indices[row]) == set(range(n)) - {row} for row in range(n))


def test_the_same_seed_gives_the_same_neighbours(kinds):
    """An inexact search repeats itself."""
    first, second = (nearest_neighbours(kinds, 4, seed=3, exact_up_to=100) for _ in range(2))
    np.testing.assert_array_equal(first.indices, second.indices)
    assert first.recall == second.recall


def test_embeddings_may_lie_on_disk(kinds, tmp_path):
    """A memory-mapped file gives what the array gives."""
    np.save(tmp_path / "embeddings.npy", kinds)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        nearest_neighbours(mapped, 3, exact_up_to=100).indices, nearest_neighbours(kinds, 3, exact_up_to=100).indices
    )
