"""The images that stand for their fine clusters: how many of each, and what each counts for."""

from __future__ import annotations

import numpy as np
import pytest

from deepmcat_trainer.clustering import MOST_CLUSTERS
from deepmcat_trainer.grouping import FinalSettings, group
from deepmcat_trainer.neighbours import nearest_neighbours
from deepmcat_trainer.representatives import Representatives
from deepmcat_trainer.walk import MOST_NEIGHBOURS, diffusion, links


def of_sizes(sizes, seed=0):
    """The clusters of so many images each, in any order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize(
    ("sizes", "most", "given"),
    [
        ([5, 3], 8, [5, 3]),
        ([5, 3], 100, [5, 3]),
        ([100, 100], 50, [25, 25]),
        ([100, 100, 4], 50, [23, 23, 4]),
        ([100, 30, 4, 1], 60, [27, 27, 4, 1]),
        ([100, 30, 4, 1], 99, [64, 30, 4, 1]),
        ([7, 7, 7], 8, [2, 2, 2]),
        ([7, 7, 7], 2, [1, 1, 1]),
        ([50], 20, [20]),
    ],
)
def test_each_cluster_gives_as_many_as_the_others_or_all_it_has(sizes, most, given):
    """Small clusters are whole; of large ones as many are drawn as there is room for, and one at least."""
    assignment = of_sizes(sizes)
    drawn = Representatives.draw(assignment, len(sizes), most, seed=0)

    assert np.bincount(assignment[drawn.rows]).tolist() == given
    assert all(drawn.each >= count for count in given)
    assert (np.diff(drawn.rows) > 0).all()


def test_an_image_counts_for_those_it_stands_for():
    """Together those of a cluster count for all of it."""
    assignment = of_sizes([100, 30, 4])
    drawn = Representatives.draw(assignment, 3, 40, seed=0)
    clusters = assignment[drawn.rows]

    np.testing.assert_allclose(np.bincount(clusters, weights=drawn.counts), [100, 30, 4])
    assert set(drawn.counts[clusters == 2]) == {1.0}


def test_by_default_every_fine_cluster_fills_the_lists_of_its_images():
    """However many images there are: a kind that is one fine cluster is not thinned below its number of neighbours."""
    assert FinalSettings().graph_images >= MOST_CLUSTERS * MOST_NEIGHBOURS


def test_the_seed_says_who_is_drawn():
    """The same seed draws the same images, another one others."""
    assignment = of_sizes([200, 200])
    first, again, other = (Representatives.draw(assignment, 2, 50, seed=seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


def many_kinds(seed=0):
    """Embeddings (6120, 24) of six kinds of 1,000, and five of 24; and the kinds."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(11), [1000] * 6 + [24] * 5))
    rows = np.eye(24)[labels] + 0.6 * rng.normal(size=(len(labels), 24)) / np.sqrt(24)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("graph_images", [6120, 3000, 900])
def test_a_graph_of_a_part_keeps_every_rare_kind(graph_images):
    """A seventh of the images makes the same groups as all of them: eleven, each one kind."""
    embeddings, labels = many_kinds()
    made = group(embeddings, FinalSettings(fine_k=300, graph_images=graph_images, linkage="walk"))
    groups = made.tree.cut(11)[made.fine.assignment]

    assert made.cut.k == 11
    assert len(set(zip(groups, labels, strict=True))) == 11


def test_the_walk_visits_a_kind_by_its_size_and_not_by_who_was_drawn():
    """Of two kinds of 1,000 and 24 images, 128 and 24 are in the graph: the share of visits is as with all of them."""
    embeddings, labels = many_kinds()
    pair = np.isin(labels, [0, 6])
    embeddings, kind = embeddings[pair], (labels[pair] == 6).astype(np.int64)
    shares = []
    for most in (len(kind), 152):
        drawn = Representatives.draw(kind, 2, most, seed=0)
        near = nearest_neighbours(embeddings[drawn.rows], 8).indices
        _, visits = diffusion(links(near, kind[drawn.rows], 2, drawn.counts), 1)
        shares.append(visits[1])

    assert shares[1] == pytest.approx(shares[0], rel=0.3)
    assert shares[0] < 0.04 < 24 / 152
