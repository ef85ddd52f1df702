"""The order of an epoch: every cluster equally often."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_trainer.sampler import tempered, uniform_over_clusters

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@given(sizes, st.integers(0, 2**31))
def test_every_cluster_with_images_is_drawn_equally_often(sizes, seed):
    """N rows in all, and of each cluster at most one share; empty clusters take no part and break nothing."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = uniform_over_clusters(labels, np.random.default_rng(seed))
    share = len(labels) // np.count_nonzero(sizes) + 1
    drawn = np.bincount(labels[order], minlength=len(sizes))

    assert len(order) == len(labels)
    assert drawn.max() <= share
    assert (drawn[np.array(sizes) == 0] == 0).all()
    assert np.maximum(share - drawn, 0)[np.array(sizes) > 0].sum() < share * np.count_nonzero(sizes) - len(labels) + 1


def test_large_clusters_do_not_drown_small_ones():
    """990 images of one cluster and 10 of another: half of the order each."""
    labels = np.repeat([0, 1], [990, 10])
    drawn = np.bincount(labels[uniform_over_clusters(labels, np.random.default_rng(0))])

    assert abs(drawn[0] - drawn[1]) <= 2


def test_a_cluster_of_its_share_is_drawn_without_repeats():
    """Repeats only where a cluster is smaller than its share."""
    labels = np.repeat([0, 1], [90, 10])
    order = uniform_over_clusters(labels, np.random.default_rng(0))
    large = order[labels[order] == 0]

    assert len(np.unique(large)) == len(large)


def test_the_same_seed_gives_the_same_order():
    """The order depends on labels and generator alone."""
    labels = np.arange(100) % 7

    assert np.array_equal(*(uniform_over_clusters(labels, np.random.default_rng(5)) for _ in range(2)))


@given(sizes, st.floats(0, 1), st.integers(0, 2**31))
def test_temper_draws_as_many_as_there_are(sizes, alpha, seed):
    """N rows, of each cluster its share to within one, and within a cluster every image equally often, but for one."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = tempered(labels, alpha, np.random.default_rng(seed))
    shares = np.where(np.array(sizes) > 0, np.array(sizes, dtype=float) ** (1 - alpha), 0)
    times = np.bincount(order, minlength=len(labels))

    assert len(order) == len(labels)
    assert np.abs(np.bincount(labels[order], minlength=len(sizes)) - shares / shares.sum() * len(labels)).max() <= 1.001
    assert all(np.ptp(times[labels == k]) <= 1 for k in np.unique(labels))


def test_temper_goes_from_every_image_once_to_every_cluster_equally_often():
    """900 images and 100: 900 to 100, then 3 to 1, then 1 to 1."""
    labels = np.repeat([0, 1], [900, 100])
    drawn = [np.bincount(labels[tempered(labels, alpha, np.random.default_rng(0))]) for alpha in (0, 0.5, 1)]

    assert np.array_equal(np.sort(tempered(labels, 0, np.random.default_rng(0))), np.arange(1000))
    assert [counts.tolist() for counts in drawn] == [[900, 100], [750, 250], [500, 500]]
