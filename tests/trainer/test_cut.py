"""The suggested cut: what it finds, and that it never fails on small or strange data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from deepmcat_trainer.clustering import default_k, kmeans
from deepmcat_trainer.cut import MAX_CATEGORIES, suggest_cut
from deepmcat_trainer.merge import merge_tree


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def blobs(sizes, dim=16, spread=0.2, seed=0):
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(len(sizes), dim)))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return unit(centres[labels] + spread * rng.normal(size=(len(labels), dim)) / np.sqrt(dim))


def suggest(embeddings, most=MAX_CATEGORIES, k=None):
    fine = kmeans(embeddings, k or default_k(len(embeddings)), niter=20, nredo=1, seed=0)
    tree = merge_tree(fine.sums(embeddings), fine.sizes, "ward")
    return suggest_cut(tree, fine, embeddings, max_categories=most, seed=0), tree, fine


@pytest.mark.parametrize("groups", [2, 3, 6, 10])
def test_well_separated_groups_are_found(groups):
    """Uneven groups that are far apart: as many categories as groups."""
    cut, *_ = suggest(blobs([60 + 20 * i for i in range(groups)]))
    assert cut.k == groups


def test_silhouettes_are_those_of_the_images():
    """Computed from sums, they equal scikit-learn's over all pairs."""
    embeddings = blobs([50, 40, 30], spread=1.0)
    cut, tree, fine = suggest(embeddings)
    assert min(cut.silhouettes) == 2
    for k in (2, 3, 5, max(cut.silhouettes)):
        expected = silhouette_score(embeddings, tree.cut(k)[fine.assignment], metric="cosine")
        assert cut.silhouettes[k] == pytest.approx(expected, abs=1e-4)


def test_the_maximum_is_kept():
    """Ten groups, at most four categories."""
    cut, *_ = suggest(blobs([60] * 10), most=4)
    assert 2 <= cut.k <= 4


def test_identical_images_are_one_category():
    """Nothing separates them."""
    assert suggest(np.repeat(blobs([1]), 50, axis=0))[0].k == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 60])
def test_small_data_gets_a_cut(n):
    """Any number of images has a cut within its clusters."""
    cut, tree, _ = suggest(blobs([n], spread=3.0))
    assert 1 <= cut.k <= tree.k
