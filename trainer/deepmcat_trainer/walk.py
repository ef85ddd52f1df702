"""The merge tree by a random walk between fine clusters: what a walker seldom leaves is a group, however small.

    k-NN graph of each view ─mutual edges─► links between clusters (K, K) ─summed over views─► random walk P
        ─t steps─► diffusion coordinates ─Ward, weighted by how often the walk visits─► tree

Two images are linked where each is among the other's nearest neighbours; a neighbour that is not returned counts
ONE_SIDED. That is what keeps rare kinds: some of the neighbours of an image in a group of 20 lie outside, because the
group has no more, but what lies there is denser and does not choose it back. Views (embeddings of the same images from
several depths of a network) isolate different strays and the same kinds, so their links are summed. Of more than
half a million images a part stands for all (grouping.py).

In diffusion coordinates (Coifman and Lafon 2006, "Diffusion maps") the squared distance of two clusters is that of
where walkers from them are after t steps, over how often a place is visited. Between two groups that the walk never
leaves it is 1/π_a + 1/π_b, with π the share of visits, and Ward's cost of merging them π_a π_b / (π_a + π_b) times
that: 1, whatever their sizes. Within a group that the walk mixes well it goes to 0. So heights are comparable for
rare and frequent kinds (Ward's objective here is the relaxed normalised cut; Dhillon, Guan and Kulis 2004).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import sparse

from deepmcat_core.tree import MergeTree
from deepmcat_trainer.merge import ward_tree
from deepmcat_trainer.neighbours import nearest_neighbours

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ONE_SIDED = 0.05
FEWEST_NEIGHBOURS, MOST_NEIGHBOURS = 3, 30
FLOOR = 1e-9  # a link of every cluster to itself: one that no image has a neighbour in is still visited


def walk_tree(
    views: Iterable[Floats],
    assignment: Ints,
    k: int,
    *,
    counts: Doubles | None = None,
    neighbours: int,
    steps: int,
    device: str = "cpu",
    seed: int = 0,
) -> MergeTree:
    """The tree over `k` fine clusters.

    views: embeddings (N, D_v) of the same images, unit rows. assignment: (N,) the cluster of each. counts: (N,) how
    many images each stands for; None: itself. neighbours: edges of an image in each view's graph. steps: of the walk;
    more let only the slowest boundaries count.
    """
    total = sparse.csr_matrix((k, k), dtype=np.float64)
    for view in views:
        found = nearest_neighbours(view, neighbours, device=device, seed=seed).indices
        total = total + links(found, assignment, k, counts)
    products, visits = diffusion(total, steps)
    return ward_tree(products, visits, "walk")


def default_neighbours(images: int) -> int:
    """From 3 to 30: half of √N up to 12, then a quarter of it.

    Few images have few of each kind, and a graph wider than a kind joins it to others; many need wide ties to hold a
    frequent kind together.
    """
    root = float(np.sqrt(images))
    return int(np.clip(round(root / 4), min(max(FEWEST_NEIGHBOURS, round(root / 2)), 12), MOST_NEIGHBOURS))


def links(
    neighbours: npt.NDArray[np.integer], assignment: Ints, k: int, counts: Doubles | None = None
) -> sparse.csr_matrix:
    """How strongly the images of two clusters are linked, (k, k), symmetric: counts of mutual edges and one-sided ones.

    neighbours: (N, m) the rows of each image's nearest neighbours. counts: as for walk_tree; an edge counts as often as
    the geometric mean of its ends' counts says.
    """
    n, m = neighbours.shape
    ends = np.arange(n + 1, dtype=np.int32) * m
    edges = sparse.csr_matrix((np.ones(n * m, np.float32), neighbours.ravel().astype(np.int32), ends), shape=(n, n))
    both = edges.multiply(edges.T)
    weights = (1 - ONE_SIDED) * both + (ONE_SIDED / 2) * (edges + edges.T)
    shares = np.ones(n, np.float32) if counts is None else np.sqrt(counts).astype(np.float32)
    members = sparse.csr_matrix((shares, (np.arange(n), assignment)), shape=(n, k))
    return sparse.csr_matrix(members.T @ weights @ members, dtype=np.float64)


def diffusion(weights: sparse.csr_matrix, steps: int) -> tuple[Floats, Doubles]:
    """Inner products of the diffusion coordinates (K, K) after `steps` along `weights` (K, K), and visits (K,).

    With S = D^-½ W D^-½ they are S^2t over the roots of the shares of visits. Powers instead of eigenvectors: exact
    however many groups never meet, where an iterative solver misses some of as many equal eigenvalues.
    """
    weights = weights + FLOOR * sparse.eye(weights.shape[0])
    degree = np.asarray(weights.sum(axis=1)).ravel()
    visits = degree / degree.sum()
    scale = sparse.diags(1 / np.sqrt(degree))
    products = np.linalg.matrix_power((scale @ weights @ scale).toarray().astype(np.float32), 2 * steps)
    roots = np.sqrt(visits).astype(np.float32)
    products /= roots
    products /= roots[:, None]
    return products, visits
