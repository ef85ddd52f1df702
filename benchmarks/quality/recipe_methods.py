"""Recipes as methods: the product's own functions, from training to p-values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.quality import baseline_methods as baselines
from benchmarks.quality import sources
from benchmarks.quality.features import Source, embeddings, raw
from benchmarks.quality.fitted import Clusters, Fitted, Verdicts
from benchmarks.quality.method import Method
from benchmarks.quality.task import Task
from rich.console import Console

from deepmcat_core import config
from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import Encoder, parse_encoder, pretrained
from deepmcat_trainer import recipes
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.grouping import FinalSettings, calibrate, group
from deepmcat_trainer.recipes import neighbours, stages
from deepmcat_trainer.recipes.base import Trained
from deepmcat_trainer.recipes.neighbours import NeighboursSettings
from deepmcat_trainer.recipes.stages import StagesSettings, ViewsSettings
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import RecipeSettings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
OnFeatures = Callable[[Floats, Any, Run], Trained]

PAPER = {"images": 2000, "size": 64}
PAPER_SETTINGS = {"epochs": 5}
DEPENDS = (*sources.TRAINING, "benchmarks/quality/recipe_methods.py")


def final_stage(parts: Sequence[Floats], views: Sequence[int], final: FinalSettings, device: str) -> Fitted:
    """The product's final stage on the embeddings of the fit, calibration and test images; views: `Encoder.views`."""
    embedded, held_out, test = parts
    start = time.monotonic()
    grouping = group(embedded, final, views=views, device=device)
    middle = time.monotonic()
    calibration = calibrate(grouping, held_out, alpha=final.alpha, device=device)
    seconds = {"group": middle - start, "calibrate": time.monotonic() - middle}
    nearest, distances = Centroids(grouping.fine.centroids, device).nearest(test, 1)
    clusters = nearest[:, 0]
    verdicts = Verdicts(
        p_values=calibration.p_values(clusters, distances[:, 0]),
        scores=calibration.score(clusters, distances[:, 0]).astype(np.float64),
    )
    fine = Clusters(k=grouping.fine.k, fit=grouping.fine.assignment, test=clusters)
    return Fitted(fine=fine, tree=grouping.tree, suggested_k=grouping.cut.k, verdicts=verdicts, seconds=seconds)


def recipe(
    name: str, *, on_features: OnFeatures | None = None, cached: bool = False,
    settings: Mapping[str, Any] | None = None, label: str | None = None, **more: Any,
) -> Method:  # fmt: skip
    """A recipe of the product, with the product's final stage.

    cached: the recipe keeps the backbone as it was, so its embeddings follow from the cached features. on_features:
    its training from the features (N, F) of the fit images, where it has such a function, instead of from images.
    """
    given = dict(settings or {})
    depths = given.get("stages", StagesSettings().stages if name in ("stages", "neighbours") else ())
    encoder = given.get("encoder", "gradients" if name == "gradients" else Source().encoder)
    source = Source(encoder=encoder, stages=tuple(depths))

    def fit(task: Task) -> Fitted:
        chosen, run = _settings(name, given, task.seed), _run(name, task)
        images = SplitImages(task.images, task.fold.fit, task.device)
        start = time.monotonic()
        if on_features is None:
            trained = recipes.find(name).train(images, chosen, run)
        else:
            trained = on_features(task.features(source, task.fold.fit), chosen, run)
        seconds = {"train": time.monotonic() - start}
        parts = (task.fold.fit, task.fold.calibration, task.fold.test)
        if cached:
            seconds["embed"] = task.embedding_seconds(source)
            embedded = [embeddings(trained.encoder, task.features(source, rows), task.device) for rows in parts]
        else:
            embedded, seconds["embed"] = _embedded(trained.encoder, task.images, parts, task.device)
        fitted = final_stage(embedded, trained.encoder.views, chosen.final, task.device)
        return baselines.timed(fitted, seconds)

    return Method(
        name=label or name, fit=fit, settings={"recipe": name, **given}, source=(lambda _: source) if cached else None,
        depends=DEPENDS, verdicts=True, **more,
    )  # fmt: skip


def stages_on_features(features: Floats, settings: ViewsSettings, run: Run) -> Trained:
    """The training of recipes `stages` and `gradients` from the features (N, ΣF) of the fit images."""
    rows = stages.sample(len(features), settings)
    if isinstance(settings, StagesSettings):
        base = stages.encoder(settings)
    else:
        base = pretrained(parse_encoder(settings.encoder))
    return Trained(encoder=stages.viewed(base, features[rows], settings, run))


def neighbours_on_features(features: Floats, settings: NeighboursSettings, run: Run) -> Trained:
    """The training of recipe `neighbours`, likewise."""
    return Trained(encoder=neighbours.on_features(features, stages.encoder(settings), settings, run))


def paper(own: bool) -> Callable[[Task], Fitted]:
    """Paper mode on a CPU: `deepmcat2021-small` on few images. own: its own last k-means, not the final stage.

    All fit images are then assigned, as a server would do it, so that groups are named as those of other methods are.
    """

    def fit(task: Task) -> Fitted:
        small, whole = (task.reduced(images, PAPER["size"]) for images in (PAPER["images"], len(task.fold.fit)))
        settings = _settings("deepmcat2021-small", PAPER_SETTINGS, task.seed)
        start = time.monotonic()
        images = SplitImages(small.images, small.fold.fit, task.device)
        trained = recipes.find("deepmcat2021-small").train(images, settings, _run("deepmcat2021-small", small))
        seconds = {"train": time.monotonic() - start}
        features = [
            raw(trained.encoder, small.images, rows, task.device) for rows in (small.fold.fit, small.fold.calibration)
        ]
        known = raw(trained.encoder, whole.images, np.concatenate([whole.fold.test, whole.fold.fit]), task.device)
        if own:
            fitted = baselines.own_last_kmeans(features[0], known, settings, task.ks)
        else:
            embedded = [embeddings(trained.encoder, part, task.device) for part in (*features, known)]
            fitted = final_stage(embedded, trained.encoder.views, settings.final, task.device)
        return baselines.timed(_with_all_fit_images(fitted, len(whole.fold.test)), seconds)

    return fit


def _with_all_fit_images(fitted: Fitted, test: int) -> Fitted:
    """`fitted`, whose test images are followed by all fit images: those take the place of the few it was fitted to."""

    def split(clusters: Clusters) -> Clusters:
        return Clusters(k=clusters.k, fit=clusters.test[test:], test=clusters.test[:test])

    verdicts = fitted.verdicts
    if verdicts is not None:
        verdicts = Verdicts(p_values=verdicts.p_values[:test], scores=verdicts.scores[:test])
    runs = {k: split(clusters) for k, clusters in fitted.runs.items()}
    return replace(fitted, fine=split(fitted.fine), runs=runs, verdicts=verdicts)


def _settings(name: str, given: Mapping[str, Any], seed: int) -> Any:
    kind: type[RecipeSettings] = recipes.find(name).settings
    final = {"seed": seed, **given.get("final", {})}
    return config.validate(kind, {**given, "seed": seed, "final": final})


def _run(name: str, task: Task) -> Run:
    key = RunKey(recipe=name, settings={}, dataset="")
    quiet = Console(stderr=True, quiet=True)
    return Run(folder=task.folder / "run", key=key, device=task.device, budget=Budget(None), console=quiet)


def _embedded(
    encoder: Encoder, images: npt.NDArray[np.uint8], parts: tuple[Ints, ...], device: str
) -> tuple[list[Floats], float]:
    """Embeddings of each part, and the seconds of what training needs: all but the last part, the test images."""
    start = time.monotonic()
    features = raw(encoder, images, np.concatenate(parts), device)
    share = 1 - len(parts[-1]) / len(features)
    embedded = embeddings(encoder, features, device)
    seconds = (time.monotonic() - start) * share
    return np.split(embedded, np.cumsum([len(part) for part in parts])[:-1]), seconds
