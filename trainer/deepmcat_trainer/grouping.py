"""From embeddings to groups: fine clusters, the tree that merges them, and where to cut it, all without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from deepmcat_core.calibration import ALPHA, Calibration
from deepmcat_core.centroids import Centroids
from deepmcat_core.errors import ConfigError
from deepmcat_core.tree import MergeTree
from deepmcat_trainer.clustering import FineClusters, default_k, kmeans
from deepmcat_trainer.cut import MAX_CATEGORIES, SuggestedCut, suggest_cut, walk_cut
from deepmcat_trainer.merge import merge_tree
from deepmcat_trainer.representatives import Representatives
from deepmcat_trainer.walk import FEWEST_NEIGHBOURS, default_neighbours, walk_tree

Floats = npt.NDArray[np.float32]


WALK_FROM = 256  # images: in a smaller archive the graph is wider than most kinds, and joins them


class FinalSettings(BaseModel):
    """The settings of the final stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fine_k: int | None = Field(default=None, ge=1)  # None: one in 12 images, from 1024 to 16,384 (clustering.default_k)
    linkage: Literal["walk", "average", "ward"] | None = None  # walk.py, merge.py; None: "ward" below WALK_FROM images
    neighbours: int | None = Field(default=None, ge=1)  # of an image; None: walk.default_neighbours
    walk_steps: int = Field(default=8, ge=1)
    graph_images: int = Field(default=500_000, ge=2)  # of more, a part stands for all (representatives.py)
    niter: int = Field(default=20, ge=1)
    nredo: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    memory_mb: int = Field(default=4096, ge=1)  # embeddings over this lie on disk, beside the artifact to come
    max_categories: int = Field(default=MAX_CATEGORIES, ge=1)
    categories: int | None = Field(default=None, ge=1)  # None: the suggested cut
    alpha: float = Field(default=ALPHA, gt=0, lt=1)

    def clusters_for(self, images: int) -> int:
        """How many fine clusters to ask for. Raises ConfigError where `images` are too few for these settings."""
        k = default_k(images) if self.fine_k is None else self.fine_k
        if images == 0:
            raise ConfigError("the dataset has no image to fit; prepare more images")
        if k > images:
            raise ConfigError(f"setting 'final.fine_k' is {k}; the dataset has {images} images to fit")
        if self.categories is not None and self.categories > k:
            raise ConfigError(f"setting 'final.categories' is {self.categories}; there are {k} fine clusters to merge")
        return k


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The fine clusters of the fit images, their merge tree, and the cut that is suggested."""

    fine: FineClusters
    tree: MergeTree
    cut: SuggestedCut


def group(embeddings: Floats, final: FinalSettings, *, views: Sequence[int] = (), device: str = "cpu") -> Grouping:
    """Group the fit images.

    embeddings: (N, D) unit rows, may be memory-mapped; the space of the fine clusters and of serving. views: the
    dimensions of each part of them that has a say of its own in how clusters merge, as `Encoder.views` has them.
    Raises ConfigError where there are too few images.
    """
    k = final.clusters_for(len(embeddings))
    fine = kmeans(embeddings, k, niter=final.niter, nredo=final.nredo, seed=final.seed, device=device)
    tree = _tree(embeddings, views, fine, final, device)
    if tree.linkage == "walk":
        cut = walk_cut(tree, max_categories=final.max_categories)
    else:
        cut = suggest_cut(tree, fine, embeddings, max_categories=final.max_categories, seed=final.seed)
    return Grouping(fine=fine, tree=tree, cut=cut)


def _tree(embeddings: Floats, views: Sequence[int], fine: FineClusters, final: FinalSettings, device: str) -> MergeTree:
    n = len(embeddings)
    linkage = final.linkage or ("walk" if n >= WALK_FROM else "ward")
    if linkage != "walk":
        return merge_tree(fine.sums(embeddings), fine.sizes, linkage)
    graph = Representatives.draw(fine.assignment, fine.k, final.graph_images, final.seed)
    # No more than a fine cluster gave: a rare kind may be one, and would be tied to others (docs/training.md).
    most_neighbours = max(graph.each, FEWEST_NEIGHBOURS)
    return walk_tree(
        split_views(embeddings if len(graph.rows) == n else embeddings[graph.rows], views),
        fine.assignment[graph.rows],
        fine.k,
        counts=graph.counts,
        neighbours=final.neighbours or min(default_neighbours(n), most_neighbours),
        steps=final.walk_steps,
        device=device,
        seed=final.seed,
    )


def split_views(embeddings: Floats, dims: Sequence[int]) -> Iterator[Floats]:
    """The embeddings (N, ΣD_v), then each of their views (N, D_v) at unit length where there is more than one.

    dims: of each view, as `Encoder.views` has them. A view is made when it is its turn, so that only one takes memory.
    """
    yield embeddings
    if len(dims) > 1:
        for end, dim in zip(np.cumsum(dims), dims, strict=True):
            view = np.array(embeddings[:, end - dim : end], dtype=np.float32)
            view /= np.maximum(np.linalg.norm(view, axis=1, keepdims=True), 1e-12)
            yield view


def calibrate(grouping: Grouping, held_out: Floats, *, alpha: float, device: str = "cpu") -> Calibration:
    """The calibration by embeddings (n, D) of images that the grouping has not seen."""
    clusters, distances = Centroids(grouping.fine.centroids, device).nearest(held_out, 1)
    return Calibration.fit(
        tree=grouping.tree,
        fit_clusters=grouping.fine.assignment,
        fit_distances=grouping.fine.distances,
        clusters=clusters[:, 0],
        distances=distances[:, 0],
        alpha=alpha,
    )
