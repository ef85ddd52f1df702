"""The tree of the random walk: what it keeps apart, what it joins, and that it repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from deepmcat_trainer.clustering import kmeans
from deepmcat_trainer.merge import ward_tree
from deepmcat_trainer.walk import ONE_SIDED, default_neighbours, diffusion, links, walk_tree


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def blobs(sizes, dim=16, spread=0.4, seed=0):
    """Kinds of so many images around orthogonal centres: (N, D), (N,) kinds."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return unit(np.eye(dim)[labels] + spread * rng.normal(size=(len(labels), dim)) / np.sqrt(dim)), labels


def tree_of(views, fine, **settings):
    return walk_tree(views, fine.assignment, fine.k, **{"neighbours": 12, "steps": 8} | settings)


def clustered(embeddings, k):
    return kmeans(embeddings, k, niter=10, nredo=1, seed=0)


def costs(tree):
    """What each merge costs, the last first: 0 to 1."""
    return [merge.height**2 / 2 for merge in reversed(tree.merges)]


def purely_grouped(tree, k, fine, labels):
    """Whether the cut at `k` has one group for each kind, and nothing else in it."""
    return len(set(zip(tree.cut(k)[fine.assignment], labels, strict=True))) == k == len(set(labels))


def test_a_rare_kind_is_a_group_beside_two_large_ones():
    """Two kinds of 400 images and one of 24 are the three groups: merging them costs nearly 1, merging parts less."""
    embeddings, labels = blobs([400, 400, 24])
    fine = clustered(embeddings, 80)
    tree = tree_of([embeddings], fine)

    assert purely_grouped(tree, 3, fine, labels)
    np.testing.assert_allclose(costs(tree)[:2], 1, atol=0.05)
    assert costs(tree)[2] < 0.9


def test_heights_never_fall():
    """The tree is monotone, and says how it was made."""
    embeddings, _ = blobs([60, 40, 20], spread=1.5)
    tree = tree_of([embeddings], clustered(embeddings, 25))
    heights = [merge.height for merge in tree.merges]

    assert heights == sorted(heights)
    assert tree.linkage == "walk"


def test_links_count_mutual_edges_fully_and_others_little():
    """Images 0 and 1 choose each other, 2 chooses 0, 3 chooses 2: the sums by cluster are symmetric."""
    chosen = np.array([[1], [0], [0], [2]])
    each = links(chosen, np.arange(4), 4).toarray()
    pairs = links(chosen, np.array([0, 0, 1, 1]), 2).toarray()

    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 1
    expected[0, 2] = expected[2, 0] = expected[2, 3] = expected[3, 2] = ONE_SIDED / 2
    np.testing.assert_allclose(each, expected)
    np.testing.assert_allclose(pairs, [[2, ONE_SIDED / 2], [ONE_SIDED / 2, ONE_SIDED]])


def test_links_within_a_cluster_count_from_both_sides():
    """All of an image's ties add up, whichever clusters they lead to: the walk visits a cluster by its images."""
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.choice(np.delete(np.arange(40), i), 5, replace=False) for i in range(40)])
    weights = links(chosen, rng.integers(0, 6, 40), 6)

    assert abs(weights - weights.T).max() < 1e-5
    edges = np.zeros((40, 40))
    edges[np.arange(40)[:, None], chosen] = 1
    mutual = (edges * edges.T).sum()
    assert weights.sum() == pytest.approx(mutual + ONE_SIDED * (edges.sum() - mutual), rel=1e-5)


def test_one_cluster_is_a_tree():
    """Nothing to merge, however many images it has; one image has no neighbours."""
    for n in (1, 30):
        embeddings, _ = blobs([n])
        tree = tree_of([embeddings], clustered(embeddings, 1))
        assert (tree.k, tree.merges) == (1, ())


def test_two_clusters_are_one_merge():
    """Far apart it costs 1; of one kind next to nothing."""
    apart, _ = blobs([60, 60])
    together, _ = blobs([120])
    far, near = (tree_of([x], clustered(x, 2)) for x in (apart, together))

    assert [len(far.merges), len(near.merges)] == [1, 1]
    assert costs(far)[0] == pytest.approx(1, abs=0.01)
    assert costs(near)[0] < 0.2


def test_copies_of_images_make_a_tree():
    """Sixty copies of three images, more than an image has neighbours: three groups that the walk never leaves."""
    embeddings = np.repeat(blobs([1, 1, 1])[0], 60, axis=0)
    fine = clustered(embeddings, 10)
    tree = tree_of([embeddings], fine)

    assert tree.k == 3
    np.testing.assert_allclose(costs(tree), 1, atol=1e-3)


def test_the_same_seed_gives_the_same_tree():
    """The walk repeats itself, over several views too."""
    embeddings, _ = blobs([80, 60, 24], spread=1.0)
    other, _ = blobs([80, 60, 24], spread=1.0, seed=1)
    fine = clustered(embeddings, 30)

    assert tree_of([embeddings, other], fine, seed=3) == tree_of([embeddings, other], fine, seed=3)


def test_diffusion_distances_are_those_of_the_walkers():
    """The squared distance of two clusters is that of where walkers from them are, over the share of visits."""
    rng = np.random.default_rng(0)
    weights = rng.random((9, 9))
    weights = weights + weights.T + 30 * np.eye(9)
    products, visits = diffusion(sparse.csr_matrix(weights), 3)
    step = weights / weights.sum(axis=1, keepdims=True)
    walkers = np.linalg.matrix_power(step, 3)

    np.testing.assert_allclose(visits, weights.sum(axis=1) / weights.sum(), rtol=1e-6)
    for a, b in [(0, 1), (2, 7), (5, 8)]:
        expected = ((walkers[a] - walkers[b]) ** 2 / visits).sum()
        assert products[a, a] + products[b, b] - 2 * products[a, b] == pytest.approx(expected, rel=1e-3)


def test_many_groups_that_never_meet_cost_1_however_many():
    """Of 300 pairs of clusters without a link between pairs, every merge of two pairs costs 1, and within one 0."""
    pair = np.ones((2, 2))
    products, visits = diffusion(sparse.csr_matrix(sparse.block_diag([pair] * 300)), 8)
    costs = np.array([merge.height**2 / 2 for merge in ward_tree(products, visits, "walk").merges])

    np.testing.assert_allclose(costs[:300], 0, atol=1e-3)
    np.testing.assert_allclose(costs[300:], 1, atol=1e-2)


def gaps(points):
    """The squared distances of the first ten of `points` to all."""
    return ((points[:10, None] - points[None]) ** 2).sum(axis=2)


def stray_in(view, rows, towards):
    """`view` with its `rows` moved to one place of their own, near each other and away from all others."""
    moved = view.copy()
    rng = np.random.default_rng(9)
    moved[rows] = unit(np.eye(view.shape[1])[[towards]] + 0.1 * rng.normal(size=(len(rows), view.shape[1])) / 4)
    return moved


def test_views_agree_on_kinds_and_not_on_strays():
    """24 images that lie apart in one view of four are no group; 24 that lie apart in each are."""
    views = [blobs([300, 300, 24], seed=i)[0] for i in range(4)]
    labels = blobs([300, 300, 24])[1]
    strays = np.arange(24)  # of the first kind
    views[0] = stray_in(views[0], strays, 8)
    joined = unit(np.concatenate(views, axis=1))
    fine = clustered(joined, 60)
    lone, consensus = tree_of([views[0]], fine), tree_of([joined, *views], fine)

    assert purely_grouped(consensus, 3, fine, labels)
    assert len(set(lone.cut(4)[fine.assignment[strays]]) & set(lone.cut(4)[fine.assignment[24:]])) == 0
    np.testing.assert_allclose(costs(consensus)[:2], 1, atol=0.1)
    assert costs(consensus)[2] < 0.8 * costs(lone)[2]


@pytest.mark.parametrize(
    ("images", "neighbours"),
    [(1, 3), (36, 3), (64, 4), (256, 8), (576, 12), (2304, 12), (2704, 13), (6400, 20), (14_400, 30), (10**8, 30)],
)
def test_default_neighbours(images, neighbours):
    """Half of √N, from 3 to 12, and from where a quarter of it is more, that, up to 30."""
    assert default_neighbours(images) == neighbours
