"""The final stage, apart from training: from an encoder and a dataset to an artifact.

    encoder ─export─► ONNX engine ─embed─► embeddings of the fit and calibration splits
        ─k-means─► fine clusters ─linkage─► merge tree ─silhouette─► cut ─header terms─► named categories
        ─held-out distances─► calibration ─► artifact

The embeddings are the encoder's own, of unit length and not whitened: whitening serves training, and costs purity
here. Nothing in this module sees a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Draft, SelfTest
from deepmcat_core.calibration import ALPHA, Calibration
from deepmcat_core.catalog import Catalog, Category, new_id
from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import Engine
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.errors import ArtifactDamaged, ConfigError, InferenceError, MissingExtra
from deepmcat_core.manifest import Manifest
from deepmcat_core.tree import MergeTree
from deepmcat_trainer import naming
from deepmcat_trainer.clustering import FineClusters, default_k, kmeans
from deepmcat_trainer.cut import MAX_CATEGORIES, SuggestedCut, suggest_cut
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.features import embed
from deepmcat_trainer.merge import Linkage, merge_tree
from deepmcat_trainer.onnx_export import Gate, NotExportable, equality_gate, export_onnx
from deepmcat_trainer.self_test import self_test_images
from deepmcat_trainer.splits import Split

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

GATE_IMAGES = 256


class FinalSettings(BaseModel):
    """The settings of the final stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fine_k: int | None = Field(default=None, ge=1)  # None: one in 25 images, from 64 to 1024 (clustering.default_k)
    linkage: Linkage = "ward"  # merge.py says what each is good at
    niter: int = Field(default=20, ge=1)
    nredo: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
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
class Finished:
    """What the final stage made. suggested_k: the cut it would choose, whether or not the settings said another."""

    artifact_id: str
    path: Path
    fine_k: int
    suggested_k: int
    linkage: str
    catalog: Catalog
    calibration: Calibration
    gate: Gate | None  # of an ONNX engine that could be measured, passed or not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clustering:
    """Everything that follows from the embeddings of an engine."""

    fine: FineClusters
    tree: MergeTree
    cut: SuggestedCut
    calibration: Calibration


def finish(
    encoder: Encoder,
    dataset: Dataset,
    final: FinalSettings,
    training: dict[str, Any],
    out: Path,
    *,
    device: str,
    console: Console | None = None,
) -> Finished:
    """Cluster `dataset` with `encoder`, which it takes over, and write the artifact to `out`.

    training: what the manifest says of how the encoder came to be. device: "cpu" or "cuda:N". console: for the lines
    that a person should read. Raises ConfigError, InferenceError.
    """
    console = console or Console(stderr=True)
    size = dataset.preprocessing.size
    onnx = _exported(encoder, size, console)
    reference = TorchEngine(encoder, device, size=size)
    made, gate = None, None
    if onnx is not None:
        try:
            made, gate = _gated(onnx, reference, dataset, final)
        except (ArtifactDamaged, InferenceError, MissingExtra) as error:
            _say(console, f"no ONNX engine: {error}")
    if gate is not None and not gate.passed:
        _say(console, f"no ONNX engine: {gate.failure()}; a CPU will use torch")
    if gate is None or not gate.passed:
        onnx = None
        made = _cluster(reference, dataset, final)
    assert made is not None
    catalog = _catalog(made, dataset, min(final.categories or made.cut.k, made.fine.k))
    images = self_test_images(size)
    draft = Draft(
        manifest=_manifest(encoder, dataset, made, training | {"final": _record(final, made)}, gate),
        encoder=encoder.weights(),
        centroids=made.fine.centroids,
        tree=made.tree,
        calibration=made.calibration,
        catalog=catalog,
        self_test=SelfTest(images=images, embeddings=reference.embed(images)),
        onnx=onnx,
    )
    return Finished(
        artifact_id=artifacts.write(out, draft),
        path=out,
        fine_k=made.fine.k,
        suggested_k=made.cut.k,
        linkage=made.tree.linkage,
        catalog=catalog,
        calibration=made.calibration,
        gate=gate,
    )


def _exported(encoder: Encoder, size: int, console: Console) -> bytes | None:
    try:
        return export_onnx(encoder, size)
    except (NotExportable, MissingExtra) as error:
        _say(console, f"no ONNX engine: {error}")
        return None


def _gated(onnx: bytes, reference: Engine, dataset: Dataset, final: FinalSettings) -> tuple[_Clustering, Gate]:
    """The clustering by the ONNX engine, on a GPU by the reference, and how equal the two engines are."""
    candidate = OnnxEngine(onnx)
    made = _cluster(candidate if reference.device == "cpu" else reference, dataset, final)
    return made, equality_gate(reference, candidate, _gate_images(dataset), made.fine.centroids)


def _cluster(engine: Engine, dataset: Dataset, final: FinalSettings) -> _Clustering:
    rows = dataset.indices(Split.FIT)
    k = final.clusters_for(len(rows))
    embeddings = embed(engine, dataset.images, rows, description="embedding the fit split")
    fine = kmeans(embeddings, k, niter=final.niter, nredo=final.nredo, seed=final.seed, device=engine.device)
    tree = merge_tree(fine.sums(embeddings), fine.sizes, final.linkage)
    cut = suggest_cut(tree, fine, embeddings, max_categories=final.max_categories, seed=final.seed)
    held_out = embed(
        engine, dataset.images, dataset.indices(Split.CALIBRATION), description="embedding the calibration split"
    )
    clusters, distances = Centroids(fine.centroids, engine.device).nearest(held_out, 1)
    calibration = Calibration.fit(
        tree=tree,
        fit_clusters=fine.assignment,
        fit_distances=fine.distances,
        clusters=clusters[:, 0],
        distances=distances[:, 0],
        alpha=final.alpha,
    )
    return _Clustering(fine=fine, tree=tree, cut=cut, calibration=calibration)


def _gate_images(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Real images, evenly spaced over the fit split, and the synthetic ones, (n, 1, S, S)."""
    rows = dataset.indices(Split.FIT)
    chosen = rows[np.linspace(0, len(rows) - 1, min(GATE_IMAGES, len(rows))).astype(np.int64)]
    return np.concatenate([np.asarray(dataset.images[chosen])[:, None], self_test_images(dataset.preprocessing.size)])


def _catalog(made: _Clustering, dataset: Dataset, k: int) -> Catalog:
    """The first catalog: a category per group of the cut, the largest first."""
    groups = made.tree.cut(k)  # (K,)
    sizes = np.bincount(groups, weights=made.fine.sizes, minlength=k).astype(np.int64)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    ranked = rank[groups]
    columns = dataset.coded().take(dataset.indices(Split.FIT)).to_pydict()
    suggestions = naming.suggest(columns, ranked[made.fine.assignment], k)
    sizes = np.sort(sizes)[::-1]
    return Catalog(
        version=1,
        k=made.fine.k,
        categories=tuple(
            Category(
                id=new_id(),
                name=suggestion.name,
                clusters=tuple(int(c) for c in np.flatnonzero(ranked == i)),
                fit_images=int(sizes[i]),
                terms=suggestion.terms,
            )
            for i, suggestion in enumerate(suggestions)
        ),
    )


def _manifest(
    encoder: Encoder, dataset: Dataset, made: _Clustering, training: dict[str, Any], gate: Gate | None
) -> Manifest:
    return Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        encoder=encoder.spec,
        preprocessing=dataset.preprocessing,
        frames=dataset.frames,
        k=made.fine.k,
        dim=encoder.dim,
        training=training,
        decoders=dataset.decoders,
        equality_gate=gate.to_json() if gate else None,
    )


def _record(final: FinalSettings, made: _Clustering) -> dict[str, Any]:
    """What the manifest says of the final stage: its settings as they came out, and what the cut was chosen from."""
    return final.model_dump() | {
        "fine_k": made.fine.k,
        "suggested_k": made.cut.k,
        "silhouettes": {str(k): round(score, 4) for k, score in made.cut.silhouettes.items()},
        "fit_images": len(made.fine.assignment),
        "calibration_images": made.calibration.images,
    }


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
