"""How well an artifact's clusters agree with labels, at several cuts of its merge tree.

Images are assigned by the nearest centroid, as the server does it. The figures are of the tree, not of the catalog:
renaming or merging categories changes none. Two kinds stand side by side:

- own majority (`purity`, `balanced_purity`, `worst_recall`): each group counts as the class that most of the scored
  images in it have. Every extra group can only help, so compare them at one k.
- mapped (`mapped_*`): each group counts as the class of most of its labelled *fit* images, and is then scored on
  images that had no say. A group without labelled fit images is no class: its images count as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.artifact import Artifact
from deepmcat_core.centroids import Centroids
from deepmcat_core.engine import Engine
from deepmcat_core.errors import ConfigError
from deepmcat_core.tree import MergeTree
from deepmcat_trainer import scores
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.features import embed
from deepmcat_trainer.splits import Split

Ints = npt.NDArray[np.int64]

CUTS = (1, 1.5, 2, 4)  # times the number of classes


@dataclass(frozen=True, slots=True, kw_only=True)
class CutScores:
    """The scores at one cut of the tree into k groups; what each is: scores.py and the module's docstring."""

    k: int
    purity: float
    inverse_purity: float
    balanced_purity: float
    worst_recall: float
    mapped_purity: float
    mapped_balanced_purity: float
    mapped_worst_recall: float
    nmi: float
    ami: float
    ari: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """n: labelled images scored, of `classes` classes. suggested_k: where training would cut, without labels."""

    n: int
    classes: int
    split: str
    fine_k: int
    suggested_k: int
    cuts: tuple[CutScores, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `--json FILE`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The labelled images of a split: the class (n,) and fine cluster (n,) of each."""

    classes: Ints
    clusters: Ints


def evaluate(
    artifact: Artifact, dataset: Dataset, open_engine: Callable[[], Engine], split: Split = Split.TEST
) -> Evaluation:
    """Score `artifact` on a split of `dataset`, with the engine that `open_engine` gives once the two are known to fit.

    Raises ConfigError where they do not fit or labels are missing.
    """
    check_same_pixels(artifact, dataset)
    labels = dataset.labels()
    code = {label: i for i, label in enumerate(sorted(set(labels) - {""}))}
    codes = np.asarray([code.get(label, -1) for label in labels], dtype=np.int64)
    engine = open_engine()
    centroids = Centroids(artifact.centroids, engine.device)
    scored = _assigned(dataset, codes, split, engine, centroids)
    fit = scored if split is Split.FIT else _assigned(dataset, codes, Split.FIT, engine, centroids)
    suggested = suggested_k(artifact)
    return Evaluation(
        n=len(scored.classes),
        classes=len(np.unique(scored.classes)),
        split=split.value,
        fine_k=artifact.tree.k,
        suggested_k=suggested,
        cuts=score_cuts(artifact.tree, scored, fit, suggested),
    )


def check_same_pixels(artifact: Artifact, dataset: Dataset) -> None:
    """Refuse a dataset that was not preprocessed as the artifact does it. Raises ConfigError."""
    if artifact.manifest.preprocessing != dataset.preprocessing:
        ours, theirs = artifact.manifest.preprocessing, dataset.preprocessing
        difference = f"size {theirs.size}, the artifact needs {ours.size}" if ours.size != theirs.size else "intensity"
        raise ConfigError(f"the dataset was prepared in another way ({difference}): prepare it again for this artifact")


def suggested_k(artifact: Artifact) -> int:
    """The number of categories that training suggested."""
    final = artifact.manifest.training.get("final", {})
    return int(final.get("suggested_k", len(artifact.catalog.active)))


def score_cuts(tree: MergeTree, scored: Labelled, fit: Labelled, suggested: int) -> tuple[CutScores, ...]:
    """Scores at 1, 1.5, 2 and 4 times the classes, at the suggested cut and at the fine level, the coarsest first."""
    classes = len(np.unique(scored.classes))
    ks = {math.ceil(factor * classes) for factor in CUTS} | {suggested, tree.k}
    return tuple(score_groups(tree.cut(k), k, scored, fit) for k in sorted({min(k, tree.k) for k in ks}))


def score_groups(groups: Ints, k: int, scored: Labelled, fit: Labelled) -> CutScores:
    """Scores where fine cluster c belongs to group groups[c], 0 … k−1."""
    n_classes = 1 + max(int(scored.classes.max()), int(fit.classes.max()))
    assigned = groups[scored.clusters]
    table = scores.contingency(scored.classes, assigned, n_classes, k)
    mapping = scores.majority(scores.contingency(fit.classes, groups[fit.clusters], n_classes, k))
    own = scores.recalls(table, scores.majority(table))
    mapped = scores.recalls(table, mapping)
    return CutScores(
        k=k,
        purity=scores.purity(table),
        inverse_purity=scores.inverse_purity(table),
        balanced_purity=float(own.mean()),
        worst_recall=float(own.min()),
        mapped_purity=scores.mapped_purity(table, mapping),
        mapped_balanced_purity=float(mapped.mean()),
        mapped_worst_recall=float(mapped.min()),
        accuracy=scores.accuracy(table),
        **scores.agreement(scored.classes, assigned),
    )


def _assigned(dataset: Dataset, codes: Ints, split: Split, engine: Engine, centroids: Centroids) -> Labelled:
    rows = dataset.indices(split)
    rows = rows[codes[rows] >= 0]
    if len(rows) == 0:
        raise ConfigError(f"no image of the {split.value} split has a label; prepare more labelled images")
    embeddings = embed(engine, dataset.images, rows, description=f"embedding the {split.value} split")
    return Labelled(classes=codes[rows], clusters=centroids.nearest(embeddings, 1)[0][:, 0])
