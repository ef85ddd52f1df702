"""The order of an epoch: every cluster equally often."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_trainer.sampler import uniform_over_clusters

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
