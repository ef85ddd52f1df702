"""The suggested cut: what it finds, and that it never fails on small or strange data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from deepmcat_core.tree import Merge, MergeTree
from deepmcat_trainer.clustering import default_k, kmeans
from deepmcat_trainer.cut import MAX_CATEGORIES, suggest_cut, walk_cut
from deepmcat_trainer.grouping import FinalSettings, group, split_views
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


@pytest.mark.parametrize(
    ("images", "asked", "linkage"),
    [
        (255, None, "ward"),
        (256, None, "walk"),
        (255, "walk", "walk"),
        (256, "ward", "ward"),
        (256, "average", "average"),
    ],
)
def test_small_archives_get_ward_s_tree(images, asked, linkage):
    """Below 256 images Ward's, from there on the walk's, unless one is asked for."""
    made = group(blobs([images - 100, 100]), FinalSettings(linkage=asked, fine_k=20))

    assert made.tree.linkage == linkage
    assert bool(made.cut.silhouettes) == (linkage != "walk")
    assert made.cut.k == 2


@pytest.mark.parametrize("sizes", [[150], [600], [90, 90], [200, 100, 60], [120] * 6, [400, 400, 24]])
def test_the_walk_s_cut_has_as_many_groups_as_there_are_kinds(sizes):
    """Kinds that are far apart, even or not, and one alone, which is one category."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    embeddings = unit(np.eye(16)[labels] + 0.1 * rng.normal(size=(len(labels), 16)))
    made = group(embeddings, FinalSettings(linkage="walk"))

    assert made.tree.linkage == "walk"
    assert made.cut.k == len(sizes)
    assert len(set(zip(made.tree.cut(made.cut.k)[made.fine.assignment], labels, strict=True))) == len(sizes)


def chain_of(costs):
    """A tree whose merges cost so much, the last first."""
    k, merges = len(costs) + 1, []
    for i, cost in enumerate(reversed(costs)):
        left, right = (0, 1) if i == 0 else (i + 1, k + i - 1)
        merges.append(Merge(left=min(left, right), right=max(left, right), height=float(np.sqrt(2 * cost))))
    return MergeTree(k=k, merges=tuple(merges), linkage="walk")


@pytest.mark.parametrize(
    ("costs", "most", "k"),
    [
        ([], 60, 1),
        ([0.3, 0.2], 60, 1),
        ([0.9, 0.2], 60, 2),
        ([0.99, 0.95, 0.9, 0.1], 60, 4),
        ([1.0, 1.0, 1.0], 60, 4),
        ([0.99, 0.95, 0.9, 0.1], 3, 3),
        ([0.5], 60, 1),
        ([1.0] * 30 + [1 - 1e-6] * 49 + [0.1], 60, 60),
    ],
)
def test_the_walk_s_cut_is_below_the_widest_gap_in_cost(costs, most, k):
    """From one group to the maximum, which more kinds than that are cut into; of equal gaps the one with fewer."""
    cut = walk_cut(chain_of(costs), max_categories=most)

    assert cut.k == k
    assert cut.silhouettes == {}
    assert sorted(cut.gaps) == list(range(1, min(most, len(costs) + 1) + 1))
    assert all(gap >= 0 for gap in cut.gaps.values())


def test_a_merge_that_costs_more_than_one_by_rounding_leaves_no_gap_below_zero():
    """Heights are computed; 1 is the most that two groups can cost."""
    assert walk_cut(chain_of([1.0 + 1e-6, 0.1]), max_categories=60).gaps == pytest.approx({1: 0, 2: 0.9, 3: 0.1})


def test_views_are_cut_out_of_embeddings_at_unit_length():
    """The embeddings first, as they are, then each view; a view of zeros stays, and one view is the embeddings."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(7, 6)).astype(np.float32)
    embeddings[3, 4:] = 0
    whole, first, second = split_views(embeddings, (4, 2))
    present = np.arange(7) != 3

    assert whole is embeddings
    np.testing.assert_allclose(first, unit(embeddings[:, :4]), atol=1e-6)
    np.testing.assert_allclose(second[present], unit(embeddings[present, 4:]), atol=1e-6)
    assert not second[3].any()
    assert [part is embeddings for part in split_views(embeddings, (6,))] == [True]
