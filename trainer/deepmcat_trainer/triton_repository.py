"""An artifact as a Triton model repository: three models, together what our server answers for preprocessed planes.

    deepmcat           the ensemble of both: plane (n, S, S) uint8 ─► embedding, cluster, category and the others
    deepmcat_encoder   the encoder as ONNX, batched by Triton
    deepmcat_assign    numpy in the Python backend: triton_models/assign.py

Names and types of the tensors are those of our server's Open Inference Protocol, so that a client needs no change.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from deepmcat_core.artifact import Artifact
from deepmcat_core.catalog import UNKNOWN
from deepmcat_core.engine_onnx import INPUT, OUTPUT
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.targets import unwritable

Backend = Literal["onnxruntime", "python"]

ENSEMBLE, ENCODER, ASSIGN = "deepmcat", "deepmcat_encoder", "deepmcat_assign"
MODEL, CODE, TABLES, CATALOG = "model.onnx", "model.py", "tables.npz", "catalog.json"
MAX_BATCH = 64


class Tensor(NamedTuple):
    """An input or output of a model. dims: with -1 for the rows where Triton does not batch the model itself."""

    name: str
    data_type: str
    dims: tuple[int, ...]


ASSIGNMENT = (
    Tensor("cluster", "TYPE_INT64", (-1,)),
    Tensor("category_id", "TYPE_STRING", (-1,)),
    Tensor("category", "TYPE_STRING", (-1,)),
    Tensor("distance", "TYPE_FP32", (-1,)),
    Tensor("p_value", "TYPE_FP64", (-1,)),
    Tensor("outlier", "TYPE_BOOL", (-1,)),
)


def onnx_file(artifact: Artifact) -> Path:
    """The encoder as ONNX, measured equal when the artifact was made. Raises ConfigError where it has none."""
    if artifact.onnx is None:
        raise ConfigError(
            "this artifact has no ONNX engine, because ONNX could not express its encoder or was not equal to it; "
            "train one whose encoder is exported, or serve this one with deepmcat serve"
        )
    return artifact.onnx


def write_onnx(artifact: Artifact, file: Path) -> None:
    """Write the encoder as ONNX. Raises ConfigError, also where `file` exists."""
    content = onnx_file(artifact).read_bytes()
    try:
        with file.open("xb") as target:
            target.write(content)
    except FileExistsError as error:
        raise ConfigError(f"{file} exists already; choose another --onnx or remove it") from error
    except OSError as error:
        raise unwritable(file, "--onnx", error) from error


def write_repository(artifact: Artifact, folder: Path, *, backend: Backend = "onnxruntime") -> None:
    """Write the models into a new folder, under a temporary name until all are there. Raises ConfigError.

    backend: what runs the encoder: Triton's ONNX Runtime backend, or ONNX Runtime in its Python backend.
    """
    onnx = onnx_file(artifact)
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another --triton or remove it")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
        _write_encoder(artifact, onnx, temporary / ENCODER, backend)
        _write_assign(artifact, temporary / ASSIGN)
        _write_ensemble(artifact, temporary / ENSEMBLE)
        temporary.rename(folder)
    except OSError as error:
        raise unwritable(folder, "--triton", error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_encoder(artifact: Artifact, onnx: Path, folder: Path, backend: Backend) -> None:
    size, dim = artifact.manifest.preprocessing.size, artifact.manifest.dim
    version = _version(folder)
    shutil.copyfile(onnx, version / MODEL)
    if backend == "python":
        _copy_code("encode.py", version)
    _write_config(
        folder,
        f'backend: "{backend}"',
        f"max_batch_size: {MAX_BATCH}",
        _tensors("input", [Tensor(INPUT, "TYPE_UINT8", (size, size))], reshape=(1, size, size)),
        _tensors("output", [Tensor(OUTPUT, "TYPE_FP32", (dim,))]),
        "dynamic_batching { }",
    )


def _write_assign(artifact: Artifact, folder: Path) -> None:
    version, calibration, catalog = _version(folder), artifact.calibration, artifact.catalog
    _copy_code("assign.py", version)
    np.savez(
        version / TABLES,
        centroids=artifact.centroids,
        scores=calibration.scores,
        offsets=calibration.offsets,
        groups=calibration.groups,
        mean_distances=calibration.mean_distances,
    )
    names = {
        "alpha": calibration.alpha,
        "min_verdict": calibration.min_verdict,
        "unknown": UNKNOWN,
        "category_ids": [category.id for category in catalog.by_cluster],
        "categories": [category.name for category in catalog.by_cluster],
    }
    (version / CATALOG).write_text(json.dumps(names, indent=1, ensure_ascii=False), encoding="utf-8")
    _write_config(
        folder,
        'backend: "python"',
        "max_batch_size: 0",
        _tensors("input", [Tensor("embedding", "TYPE_FP32", (-1, artifact.manifest.dim))]),
        _tensors("output", ASSIGNMENT),
        "instance_group [ { kind: KIND_CPU } ]",
    )


def _write_ensemble(artifact: Artifact, folder: Path) -> None:
    size, dim = artifact.manifest.preprocessing.size, artifact.manifest.dim
    _version(folder)  # Triton wants the folder of an ensemble's version, and nothing in it
    embedding = Tensor("embedding", "TYPE_FP32", (-1, dim))
    _write_config(
        folder,
        'platform: "ensemble"',
        "max_batch_size: 0",
        _tensors("input", [Tensor("plane", "TYPE_UINT8", (-1, size, size))]),
        _tensors("output", [embedding, *ASSIGNMENT]),
        "ensemble_scheduling {",
        _step(ENCODER, {INPUT: "plane"}, {OUTPUT: "embedding"}),
        _step(ASSIGN, {"embedding": "embedding"}, {tensor.name: tensor.name for tensor in ASSIGNMENT}),
        "}",
        _parameter("artifact_id", artifact.artifact_id),
        _parameter("catalog_version", str(artifact.catalog.version)),
    )


def _version(folder: Path) -> Path:
    """The folder of the model's only version."""
    version = folder / "1"
    version.mkdir(parents=True)
    return version


def _copy_code(name: str, version: Path) -> None:
    code = resources.files("deepmcat_trainer").joinpath("triton_models", name)
    (version / CODE).write_bytes(code.read_bytes())


def _write_config(folder: Path, *parts: str) -> None:
    text = "\n".join([f'name: "{folder.name}"', *parts])
    (folder / "config.pbtxt").write_text(f"{text}\n", encoding="utf-8")


def _tensors(field: str, tensors: Sequence[Tensor], *, reshape: Sequence[int] | None = None) -> str:
    """Tensors in protobuf's text format. reshape: what the model gets instead of the dims."""
    tail = f" reshape {{ shape: {list(reshape)} }}" if reshape else ""
    items = [f'  {{ name: "{t.name}" data_type: {t.data_type} dims: {list(t.dims)}{tail} }}' for t in tensors]
    return "\n".join([f"{field} [", ",\n".join(items), "]"])


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    maps = [
        f'    {field} {{ key: "{key}" value: "{value}" }}'
        for field, names in (("input_map", inputs), ("output_map", outputs))
        for key, value in names.items()
    ]
    return "\n".join(["  step {", f'    model_name: "{model}"', "    model_version: -1", *maps, "  }"])


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
