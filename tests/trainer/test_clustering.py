"""Fine clusters and merge trees: what they must be whatever the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from deepmcat_trainer.clustering import default_k, kmeans
from deepmcat_trainer.merge import merge_tree
from deepmcat_trainer.seeding import greedy


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def blobs(sizes, dim=16, spread=0.2, seed=0):
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(len(sizes), dim)))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return unit(centres[labels] + spread * rng.normal(size=(len(labels), dim)) / np.sqrt(dim)), labels


def fine(embeddings, k, seed=0):
    return kmeans(embeddings, k, niter=20, nredo=1, seed=seed)


@pytest.mark.parametrize(
    ("images", "k"),
    [(1, 1), (5, 1), (6, 2), (60, 20), (3071, 1023), (3072, 1024), (12_299, 1024), (12_300, 1025), (10**8, 16_384)],
)
def test_default_k(images, k):
    """One cluster in 12 images, within 1024 and 16,384, and never fewer than 3 images a cluster."""
    assert default_k(images) == k


def test_every_cluster_has_an_image_and_every_image_its_nearest_cluster():
    """Clusters are unit vectors with images, and images sit at the nearest of them."""
    embeddings, _ = blobs([40, 30, 20])
    clusters = fine(embeddings, 12)
    assert clusters.k == 12
    assert clusters.sizes.min() >= 1
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1, atol=1e-5)
    similarities = embeddings @ clusters.centroids.T
    np.testing.assert_array_equal(clusters.assignment, similarities.argmax(axis=1))
    np.testing.assert_allclose(clusters.distances, 1 - similarities.max(axis=1), atol=1e-5)


@pytest.mark.parametrize(("different", "copies"), [(1, 60), (5, 12), (1, 1), (2, 1)])
def test_identical_images_leave_no_empty_cluster(different, copies):
    """More clusters than different images: the empty ones are dropped."""
    embeddings = np.repeat(blobs([1] * different)[0], copies, axis=0)
    clusters = fine(embeddings, 20)
    assert clusters.k == different
    assert set(clusters.sizes) == {copies}


def test_opposite_images_do_not_break_the_only_cluster():
    """Embeddings that average to nothing still give a centroid."""
    x = blobs([1])[0]
    clusters = fine(np.concatenate([x, -x]), 1)
    assert clusters.k == 1
    assert np.isfinite(clusters.distances).all()


def test_the_same_seed_gives_the_same_clusters():
    """K-means repeats itself."""
    embeddings, _ = blobs([40, 30, 20])
    np.testing.assert_array_equal(fine(embeddings, 9, seed=3).centroids, fine(embeddings, 9, seed=3).centroids)


def test_a_rare_kind_keeps_its_own_clusters():
    """K-means++ gives 3 images among 600 a cluster of their own."""
    embeddings, labels = blobs([300, 300, 3])
    clusters = fine(embeddings, 30)
    rare = np.unique(clusters.assignment[labels == 2])
    assert not np.isin(clusters.assignment[labels != 2], rare).any()


def kinds_and_strays(seed):
    """20,000 images of 30 kinds, 5 groups of 30 that are alike, and 100 images that are like nothing: (N, D), kinds."""
    rng = np.random.default_rng(seed)
    embeddings, labels = blobs([*np.full(30, 20_000 // 30), *[30] * 5], dim=32, spread=0.8, seed=seed)
    strays = unit(rng.normal(size=(100, 32)))
    return np.concatenate([embeddings, strays]), np.concatenate([labels, np.full(100, -1)])


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_too_rare_to_be_drawn_keep_their_own_clusters(seed):
    """Trained on a tenth of the images, of which a group of 30 has 3, each such group still leads a cluster."""
    embeddings, labels = kinds_and_strays(seed)
    clusters = kmeans(embeddings, 120, niter=10, nredo=1, seed=seed, most_rows=2000)
    led = {np.bincount(labels[clusters.assignment == i] + 1).argmax() - 1 for i in range(clusters.k)}
    assert led >= set(range(30, 35))


def test_training_on_a_sample_gives_clusters_like_any_other():
    """Above the bound, too, images sit at their nearest cluster, none is empty, and a seed repeats itself."""
    embeddings, _ = kinds_and_strays(0)
    clusters, again = (kmeans(embeddings, 40, niter=5, nredo=1, seed=1, most_rows=1000) for _ in range(2))
    similarities = embeddings @ clusters.centroids.T
    np.testing.assert_array_equal(clusters.assignment, similarities.argmax(axis=1))
    np.testing.assert_allclose(clusters.distances, 1 - similarities.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1, atol=1e-5)
    assert (clusters.k, clusters.sizes.min() >= 1) == (40, True)
    np.testing.assert_array_equal(clusters.centroids, again.centroids)


def test_identical_images_above_the_bound_leave_no_empty_cluster():
    """Where no image lies away from a centroid there is nothing to add."""
    embeddings = np.repeat(blobs([1] * 5)[0], 40, axis=0)
    clusters = kmeans(embeddings, 20, niter=5, nredo=1, seed=0, most_rows=100)
    assert clusters.k == 5
    assert set(clusters.sizes) == {40}


def test_a_start_among_strays_takes_the_group():
    """Of 30 images that are alike and 60 that are like nothing, one of the first four centres is for the 30."""
    rng = np.random.default_rng(0)
    group, _ = blobs([30], spread=0.2)
    rows = np.concatenate([unit(rng.normal(size=(60, 16))), group])
    first = [greedy(rows, np.zeros(90, np.float32), 20, seed=seed)[:4] for seed in range(5)]
    assert [sum(chosen >= 60) for chosen in first] == [1] * 5


def test_sums_are_the_sums_of_each_clusters_images():
    """FineClusters.sums adds up embeddings by cluster."""
    embeddings, _ = blobs([10, 20])
    clusters = fine(embeddings, 5)
    for cluster in range(5):
        np.testing.assert_allclose(
            clusters.sums(embeddings)[cluster], embeddings[clusters.assignment == cluster].sum(axis=0), atol=1e-5
        )


@pytest.mark.parametrize("linkage", ["average", "ward"])
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_weighted_tree_is_the_tree_of_the_images(linkage, sizes, seed):
    """Clusters of n identical images merge at the heights that scipy finds for the images themselves."""
    points = unit(np.random.default_rng(seed).normal(size=(len(sizes), 8)))
    sizes = np.asarray(sizes)
    tree = merge_tree(points.astype(np.float64) * sizes[:, None], sizes, linkage)
    images = np.repeat(points, sizes, axis=0).astype(np.float64)
    metric = "euclidean" if linkage == "ward" else "cosine"
    expected = hierarchy.linkage(images, linkage, metric=metric)[-(len(sizes) - 1) :, 2]
    np.testing.assert_allclose([m.height for m in tree.merges], expected, atol=2e-3)


@pytest.mark.parametrize("linkage", ["average", "ward"])
def test_loose_clusters_merge_at_the_mean_over_their_images(linkage):
    """With spread inside the clusters the average height is the mean cosine distance over all pairs of images."""
    embeddings, _ = blobs([40, 30, 20], spread=0.5)
    clusters = fine(embeddings, 2)
    tree = merge_tree(clusters.sums(embeddings), clusters.sizes, linkage)
    a, b = (embeddings[clusters.assignment == i].astype(np.float64) for i in (0, 1))
    gap = np.linalg.norm(a.mean(axis=0) - b.mean(axis=0))
    expected = {
        "average": (1 - a @ b.T).mean(),
        "ward": gap * np.sqrt(2 * len(a) * len(b) / (len(a) + len(b))),
    }
    np.testing.assert_allclose(tree.merges[0].height, expected[linkage], rtol=1e-4)


@pytest.mark.parametrize("linkage", ["average", "ward"])
def test_heights_never_fall_and_cuts_find_the_blobs(linkage):
    """A tree is monotone, and cut into the true number of groups it gives them."""
    embeddings, labels = blobs([60, 40, 20, 5])
    clusters = fine(embeddings, 25)
    tree = merge_tree(clusters.sums(embeddings), clusters.sizes, linkage)
    heights = [m.height for m in tree.merges]
    assert heights == sorted(heights)
    groups = tree.cut(4)[clusters.assignment]
    assert len(set(zip(groups, labels, strict=True))) == 4


def test_one_cluster_is_a_tree():
    """A single cluster makes a tree without merges."""
    tree = merge_tree(np.ones((1, 3)), np.array([5]), "average")
    assert (tree.k, tree.merges) == (1, ())


def test_equal_distances_do_not_run_in_circles():
    """Clusters that are all equally far apart merge all the same."""
    tree = merge_tree(np.eye(9), np.ones(9, dtype=np.int64), "average")
    assert [m.height for m in tree.merges] == [1.0] * 8
