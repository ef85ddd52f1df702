"""The methods compared, a line each. No method sees a label, except those that say so: they are bounds.

This file is no part of what identifies a result: what changes one belongs into its `settings` or into the files that
its `fit` is from.
"""

from __future__ import annotations

from benchmarks.quality import baseline_methods as baselines
from benchmarks.quality.features import Source
from benchmarks.quality.method import Method
from benchmarks.quality.recipe_methods import (
    DEPENDS,
    PAPER,
    PAPER_SETTINGS,
    neighbours_on_features,
    paper,
    recipe,
    stages_on_features,
)

GPU_HOURS = (14_000, 1800.0)
FROZEN = Source()
_PAPER = "deepmcat2021-small on 2,000 images of 64 px, 5 epochs"
METHODS: tuple[Method, ...] = (
    Method(
        name="pixels", summary="k-means on raw pixels, 64 px, a run for each k", fit=baselines.pixels,
        scratch=True, seconds_at=(14_000, 60.0),
    ),
    Method(
        name="pca", summary="k-means on 128 principal components of the pixels", fit=baselines.pca,
        scratch=True, seconds_at=(14_000, 10.0),
    ),
    Method(
        name="random", summary="k-means on EfficientNet-Lite0 with random weights",
        fit=lambda task: baselines.kmeans_on(task, Source(weights_seed=task.seed)),
        source=lambda seed: Source(weights_seed=seed), scratch=True,
    ),
    Method(
        name="kmeans", summary="k-means on EfficientNet-Lite0 pretrained on ImageNet, a run for each k",
        fit=lambda task: baselines.kmeans_on(task, FROZEN), source=lambda _: FROZEN,
    ),
    recipe("frozen", cached=True, summary="the recipe frozen: the encoder's last layer, fine clusters, walk tree"),
    recipe(
        "frozen", cached=True, label="frozen-ward", settings={"final": {"linkage": "ward"}},
        summary="ablation: frozen with Ward's tree on centroids instead of the walk",
    ),
    recipe(
        "stages", cached=True, on_features=stages_on_features,
        summary="the recipe stages, the default: four depths of the encoder as views, fine clusters, walk tree",
    ),
    recipe(
        "stages", cached=True, on_features=stages_on_features, label="stages-ward",
        settings={"final": {"linkage": "ward"}}, summary="ablation: stages with Ward's tree on centroids",
    ),
    recipe(
        "gradients", cached=True, on_features=stages_on_features, scratch=True,
        summary="the recipe gradients: pixels and edges as views, no network; walk tree",
    ),
    recipe(
        "neighbours", cached=True, on_features=neighbours_on_features,
        summary="the recipe neighbours: a projection trained on neighbours over the same features, walk tree",
    ),
    Method(
        name="bound-5nn", summary="sees labels: the 5 nearest labelled fit images, pretrained encoder",
        fit=lambda task: baselines.nearest_labels(task, FROZEN), source=lambda _: FROZEN, labels=True,
        seconds_at=(14_000, 5.0),
    ),
    Method(
        name="paper-own", summary=f"paper mode: {_PAPER}; its own last k-means, a run for each k", fit=paper(own=True),
        settings={**PAPER, **PAPER_SETTINGS}, depends=DEPENDS, scratch=True, slow=True,
        only="mednist/balanced", seconds_at=(2_000, 240.0),
    ),
    Method(
        name="paper", summary=f"paper mode: {_PAPER}; the final stage of the recipes", fit=paper(own=False),
        settings={**PAPER, **PAPER_SETTINGS}, depends=DEPENDS, scratch=True, slow=True,
        only="mednist/balanced", seconds_at=(2_000, 240.0),
    ),
    recipe("refine", slow=True, summary="the recipe refine: the pretrained one trained on", seconds_at=GPU_HOURS),
    recipe("deepcluster-v2", slow=True, scratch=True, summary="the recipe deepcluster-v2", seconds_at=GPU_HOURS),
    recipe("vicreg", slow=True, scratch=True, summary="the recipe vicreg", seconds_at=GPU_HOURS),
    recipe("deepmcat2021", slow=True, scratch=True, summary="paper mode at full size", seconds_at=GPU_HOURS),
)  # fmt: skip
