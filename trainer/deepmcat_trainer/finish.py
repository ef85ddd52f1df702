"""The final stage, apart from training: from an encoder and a dataset to an artifact.

    encoder ─export─► ONNX engine ─embed─► embeddings of the fit and calibration splits
        ─k-means─► fine clusters ─random walk─► merge tree ─widest gap─► cut ─header terms─► named categories
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
from rich.console import Console

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Draft, SelfTest
from deepmcat_core.assigner import Assigner
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog
from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import Engine
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine, faster_precisions
from deepmcat_core.errors import ArtifactDamaged, InferenceError, MissingExtra
from deepmcat_core.manifest import Manifest
from deepmcat_core.precision import PrecisionGate, kind_of
from deepmcat_trainer.categories import first_catalog
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.features import embed, evenly_spaced, feature_store
from deepmcat_trainer.grouping import FinalSettings, Grouping, calibrate, group
from deepmcat_trainer.lineage import Previous, Succession
from deepmcat_trainer.onnx_export import Gate, NotExportable, equality_gate, export_onnx
from deepmcat_trainer.precision_gates import MOST_IMAGES, measured
from deepmcat_trainer.self_test import self_test_images
from deepmcat_trainer.splits import Split

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

GATE_IMAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What the final stage made. suggested_k: the cut it would choose, whether or not the settings said another.

    succession: what became of the categories of the artifact before, where there was one.
    """

    artifact_id: str
    path: Path
    fine_k: int
    suggested_k: int
    linkage: str
    catalog: Catalog
    calibration: Calibration
    gate: Gate | None  # of an ONNX engine that could be measured, passed or not
    succession: Succession | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clustering:
    """Everything that follows from the embeddings of an engine.

    held_out: the embeddings of the images that judge reduced precisions.
    """

    grouping: Grouping
    calibration: Calibration
    held_out: Floats


def finish(
    encoder: Encoder,
    dataset: Dataset,
    final: FinalSettings,
    training: dict[str, Any],
    out: Path,
    *,
    device: str,
    console: Console | None = None,
    previous: Previous | None = None,
) -> Finished:
    """Cluster `dataset` with `encoder`, which it takes over, and write the artifact to `out`.

    training: what the manifest says of how the encoder came to be. device: "cpu" or "cuda:N". console: for the lines
    that a person should read. previous: the artifact whose categories live on. Raises ConfigError, InferenceError.
    """
    console = console or Console(stderr=True)
    size = dataset.preprocessing.size
    onnx = _exported(encoder, size, console)
    reference = TorchEngine(encoder, device, size=size)
    made, gate = None, None
    if onnx is not None:
        try:
            made, gate = _gated(onnx, reference, encoder, dataset, final, out.parent)
        except (ArtifactDamaged, InferenceError, MissingExtra) as error:
            _say(console, f"no ONNX engine: {error}")
    if gate is not None and not gate.passed:
        _say(console, f"no ONNX engine: {gate.failure()}; a CPU will use torch")
    if gate is None or not gate.passed:
        onnx = None
        made = _cluster(reference, encoder, dataset, final, out.parent)
    assert made is not None
    grouping = made.grouping
    k = min(final.categories or grouping.cut.k, grouping.fine.k)
    catalog, succession = first_catalog(grouping, dataset, k, previous)
    if succession is not None:
        training = training | {"previous": succession.to_json([c.id for c in catalog.active])}
    images = self_test_images(size)
    self_test = SelfTest(images=images, embeddings=reference.embed(images))
    gates = _precision_gates(encoder, reference.device, dataset, made, catalog, self_test, console)
    draft = Draft(
        manifest=_manifest(encoder, dataset, made, training | {"final": _record(final, made)}, gate, gates),
        encoder=encoder.weights(),
        centroids=grouping.fine.centroids,
        tree=grouping.tree,
        calibration=made.calibration,
        catalog=catalog,
        self_test=self_test,
        onnx=onnx,
    )
    return Finished(
        artifact_id=artifacts.write(out, draft),
        path=out,
        fine_k=grouping.fine.k,
        suggested_k=grouping.cut.k,
        linkage=grouping.tree.linkage,
        catalog=catalog,
        calibration=made.calibration,
        gate=gate,
        succession=succession,
    )


def _exported(encoder: Encoder, size: int, console: Console) -> bytes | None:
    try:
        return export_onnx(encoder, size)
    except (NotExportable, MissingExtra) as error:
        _say(console, f"no ONNX engine: {error}")
        return None


def _gated(
    onnx: bytes, reference: Engine, encoder: Encoder, dataset: Dataset, final: FinalSettings, folder: Path
) -> tuple[_Clustering, Gate]:
    """The clustering by the ONNX engine, on a GPU by the reference, and how equal the two engines are."""
    candidate = OnnxEngine(onnx)
    made = _cluster(candidate if reference.device == "cpu" else reference, encoder, dataset, final, folder)
    return made, equality_gate(reference, candidate, _gate_images(dataset), made.grouping.fine.centroids)


def _cluster(engine: Engine, encoder: Encoder, dataset: Dataset, final: FinalSettings, folder: Path) -> _Clustering:
    rows, held_out = dataset.indices(Split.FIT), dataset.indices(Split.CALIBRATION)
    with feature_store(len(rows), engine.dim, memory_mb=final.memory_mb, folder=folder) as embeddings:
        embed(engine, dataset.images, rows, description="embedding the fit split", out=embeddings)
        grouping = group(embeddings, final, views=encoder.views, device=engine.device)
    unseen = embed(engine, dataset.images, held_out, description="embedding the calibration split")
    return _Clustering(
        grouping=grouping,
        calibration=calibrate(grouping, unseen, alpha=final.alpha, device=engine.device),
        held_out=unseen[evenly_spaced(len(held_out), MOST_IMAGES[kind_of(engine.device)])],
    )


def _gate_images(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Real images, evenly spaced over the fit split, and the synthetic ones, (n, 1, S, S)."""
    rows = dataset.indices(Split.FIT)
    chosen = rows[evenly_spaced(len(rows), GATE_IMAGES)]
    return np.concatenate([np.asarray(dataset.images[chosen])[:, None], self_test_images(dataset.preprocessing.size)])


def _precision_gates(
    encoder: Encoder,
    device: str,
    dataset: Dataset,
    made: _Clustering,
    catalog: Catalog,
    self_test: SelfTest,
    console: Console,
) -> tuple[PrecisionGate, ...]:
    """What the precisions that are faster on this device were measured at, those that do not run left out."""
    held_out = dataset.indices(Split.CALIBRATION)
    judges = held_out[evenly_spaced(len(held_out), MOST_IMAGES[kind_of(device)])]
    images = np.asarray(dataset.images[judges])[:, None]
    assigner = Assigner(Centroids(made.grouping.fine.centroids, device), made.calibration, catalog)
    gates: list[PrecisionGate] = []
    for precision in faster_precisions(device) if len(judges) else ():
        try:
            gate = measured(
                encoder,
                device,
                precision,
                images=images,
                expected=made.held_out,
                assigner=assigner,
                self_test=self_test,
            )
        except InferenceError as error:
            _say(console, f"no {precision}: {error}")
        else:
            gates.append(gate)
    return tuple(gates)


def _manifest(
    encoder: Encoder,
    dataset: Dataset,
    made: _Clustering,
    training: dict[str, Any],
    gate: Gate | None,
    gates: tuple[PrecisionGate, ...],
) -> Manifest:
    return Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        encoder=encoder.spec,
        preprocessing=dataset.preprocessing,
        frames=dataset.frames,
        k=made.grouping.fine.k,
        dim=encoder.dim,
        training=training,
        decoders=dataset.decoders,
        equality_gate=gate.to_json() if gate else None,
        precision_gates=gates,
    )


def _record(final: FinalSettings, made: _Clustering) -> dict[str, Any]:
    """What the manifest says of the final stage: its settings as they came out, and what the cut was chosen from."""
    return final.model_dump() | {
        "fine_k": made.grouping.fine.k,
        "linkage": made.grouping.tree.linkage,
        "suggested_k": made.grouping.cut.k,
        "silhouettes": {str(k): round(score, 4) for k, score in made.grouping.cut.silhouettes.items()},
        "gaps": {str(k): round(gap, 4) for k, gap in made.grouping.cut.gaps.items()},
        "fit_images": len(made.grouping.fine.assignment),
        "calibration_images": made.calibration.images,
    }


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
