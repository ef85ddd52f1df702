"""The E step: whitening, k-means, and that both are the same twice."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmcat_trainer.pca import Pca
from deepmcat_trainer.pseudo_labels import assign, default_k, distance_ranks, kmeans


def correlated(n=600, f=24, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, f)) @ rng.normal(size=(f, f)) + rng.normal(size=f)).astype(np.float32)


def groups(k=6, each=40, f=16, seed=0):
    """Points around k centres far apart, and which centre each is of."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(k), each)
    return (rng.normal(size=(k, f))[truth] * 5 + rng.normal(size=(k * each, f)) * 0.1).astype(np.float32), truth


@settings(max_examples=20, deadline=None)
@given(st.integers(50, 300), st.integers(2, 20), st.integers(0, 1000))
def test_whitened_features_are_uncorrelated_with_variance_one(n, f, seed):
    """The covariance of whitened features is the identity, and their mean zero."""
    features = correlated(n, f, seed)
    whitened = Pca.fit(features, f).whiten(features).astype(np.float64)

    assert np.allclose(whitened.T @ whitened / n, np.eye(whitened.shape[1]), atol=1e-3)
    assert np.allclose(whitened.mean(0), 0, atol=1e-4)


def test_components_are_those_of_a_singular_value_decomposition():
    """Directions and variances agree with numpy's SVD of the centred features."""
    features = correlated()
    pca = Pca.fit(features, 5)
    _, values, vectors = np.linalg.svd(features.astype(np.float64) - features.mean(0, dtype=np.float64))

    assert np.allclose(pca.variances, values[:5] ** 2 / len(features))
    assert np.allclose(np.abs(pca.components.numpy() @ vectors[:5].T), np.eye(5), atol=1e-6)


def test_streaming_changes_nothing():
    """Many small chunks give the components of one large one."""
    features = correlated()
    whole, streamed = Pca.fit(features, 8), Pca.fit(features, 8, chunk_rows=64)

    assert torch.allclose(whole.components, streamed.components, atol=1e-9)


def test_dimensions_without_variance_are_left_out():
    """Rank 3 in 10 dimensions gives 3 components: whitening must not blow rounding up."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(200, 3)) @ rng.normal(size=(3, 10))).astype(np.float64)

    assert len(Pca.fit(features, 10).components) == 3


def test_identical_features_survive():
    """No variance at all is no crash: one component, and finite values."""
    features = np.ones((100, 8), dtype=np.float32)

    assert np.isfinite(Pca.fit(features, 4).whiten(features)).all()


def test_clusters_are_found_and_repeatable():
    """Groups far apart become clusters, and the same seed gives the same ones."""
    features, truth = groups()
    first, second = (assign(features, k=12, pca_dim=5, iterations=20, seed=3).labels for _ in range(2))

    assert np.array_equal(first, second)
    assert all(len(np.unique(truth[first == cluster])) == 1 for cluster in np.unique(first))


def test_kmeans_uses_every_row_and_warns_of_nothing(capfd):
    """No subsampling: the means of the clusters have those clusters. No warning about small clusters."""
    rows = correlated(n=1500, f=4)
    labels = kmeans(rows, k=3, iterations=100, seed=1)
    means = np.stack([rows[labels == cluster].mean(0) for cluster in range(3)])
    kmeans(rows[:30], k=10, iterations=5, seed=0)

    assert np.array_equal(labels, np.linalg.norm(rows[:, None] - means, axis=2).argmin(1))
    assert capfd.readouterr() == ("", "")


def test_duplicates_leave_clusters_empty_and_nothing_breaks():
    """Three different images in ten clusters: labels for all, whatever number of clusters is used."""
    features = np.repeat(np.eye(3, 8, dtype=np.float32), 30, axis=0)
    labels = assign(features, k=10, pca_dim=8, iterations=20, seed=0).labels

    assert labels.shape == (90,)
    assert labels.min() >= 0
    assert labels.max() < 10


@pytest.mark.parametrize(("n", "k"), [(64, 32), (40, 20), (3199, 32), (14_400, 144), (1_000_000, 1000)])
def test_k_follows_the_number_of_images(n, k):
    """One cluster in 100 images, from 32 to 1000, of at least two images each."""
    assert default_k(n) == k


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 2**31))
def test_ranks_order_each_cluster_by_distance(clusters, seed):
    """From 0 for the nearest to (n − 1)/n for the farthest of each cluster, so that every cluster has a nearest."""
    clusters = np.asarray(clusters)
    distances = np.random.default_rng(seed).random(len(clusters)).astype(np.float32)
    ranks = distance_ranks(clusters, distances)

    for k in np.unique(clusters):
        own = ranks[clusters == k]
        assert np.allclose(np.sort(own), np.arange(len(own)) / len(own))
        assert (np.argsort(own) == np.argsort(distances[clusters == k])).all()


def test_a_sample_finds_the_same_groups():
    """Above the bound a part of the images trains, and all are labelled."""
    features, truth = groups(each=100)
    labels = assign(features, k=30, pca_dim=5, iterations=20, seed=1, most_rows=150).labels

    assert len(labels) == len(truth)
    assert len({*zip(labels, truth, strict=True)}) == len(np.unique(labels))  # no cluster has images of two groups


def test_features_on_disk_stay_there(tmp_path):
    """Components, whitening and labels of 60 MB of features take less than half of that in memory."""
    rng = np.random.default_rng(0)
    features = np.lib.format.open_memmap(tmp_path / "features.npy", mode="w+", dtype=np.float32, shape=(60_000, 256))
    for start in range(0, len(features), 5000):
        features[start : start + 5000] = rng.normal(size=(5000, 256))
    assign(features[:100], k=4, pca_dim=8, iterations=2, seed=0)  # imports
    tracemalloc.start()
    assign(features, k=16, pca_dim=8, iterations=2, seed=0, most_rows=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < features.nbytes / 2
