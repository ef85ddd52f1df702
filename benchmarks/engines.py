"""What may run an encoder on a CPU: ONNX Runtime beside torch and OpenVINO, in float32 and in bfloat16.

    make bench-engines [ARGS="--rounds 7"]

An engine that is faster is of use where it says the same, so that each is also held against ONNX Runtime's float32 by
the gate of a reduced precision: the lowest cosine of an image's two embeddings, and how many images have the same
nearest centroid (of k-means, K of them, on the float32 embeddings). Images are MedNIST's, from $DEEPMCAT_DATA.
OpenVINO is measured where it is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from benchmarks.machine import describe
from benchmarks.serving import artifacts
from PIL import Image
from rich.console import Console
from rich.table import Table

from deepmcat_core.artifact import Artifact
from deepmcat_core.cpus import available_cpus
from deepmcat_core.encoder import build_encoder
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.precision import BFLOAT16, FLOAT32, MIN_AGREEMENT, MIN_COSINE

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Embed = Callable[[Images], Floats]

REFERENCE = "ONNX Runtime"
BATCHES = (1, 8, 32)
K = 12
SECONDS = 1.0  # of one measurement, at least


def main() -> int:
    options = _options()
    archive = Path(os.environ.get("DEEPMCAT_DATA", "")) / "mednist.tar"
    if not archive.is_file():
        print("skipped: $DEEPMCAT_DATA has no mednist.tar; docs/data.md says where to get it", file=sys.stderr)
        return 0
    report: dict[str, Any] = {"benchmark": "engines", "machine": describe(), "encoders": {}}
    if find_spec("openvino"):
        from importlib.metadata import version

        report["openvino"] = version("openvino")
    else:
        print("OpenVINO is not installed, so it is not measured: make bench-engines installs it", file=sys.stderr)
    images = mednist(archive, options.images)
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        for encoder in (artifacts.LITE0, artifacts.VGG):
            artifact = Artifact.load(artifacts.make(encoder, Path(folder) / encoder))
            report["encoders"][encoder] = measure(engines(artifact), images, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(report, Console(width=140))
    print(f"written to {options.out}")
    return 0


def mednist(archive: Path, count: int) -> Images:
    """(n, 1, 128, 128): drawn at random, the same ones each time."""
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if m.name.endswith(".jpeg")), key=lambda member: member.name)
        chosen = np.random.default_rng(0).choice(len(members), min(count, len(members)), replace=False)
        files = [tar.extractfile(members[i]) for i in sorted(chosen)]
        size = (artifacts.SIDE, artifacts.SIDE)
        pictures = [Image.open(io.BytesIO(file.read())).convert("L").resize(size) for file in files if file]
    return np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])[:, None]


def engines(artifact: Artifact) -> dict[str, Embed]:
    """By name, each on all CPUs of this process; the reference is first."""
    assert artifact.onnx is not None
    torch.set_num_threads(available_cpus())
    found: dict[str, Embed] = {REFERENCE: OnnxEngine(artifact.onnx).embed}
    for precision in (FLOAT32, BFLOAT16):
        encoder = build_encoder(artifact.manifest.encoder)
        encoder.load_weights(artifact.encoder_weights())
        found[f"torch, {precision}"] = TorchEngine(encoder, size=artifacts.SIDE, precision=precision).embed
    if find_spec("openvino"):
        found |= {f"OpenVINO, {name}": openvino(artifact.onnx, hint) for name, hint in OPENVINO_PRECISIONS.items()}
    return found


OPENVINO_PRECISIONS = {FLOAT32: "f32", BFLOAT16: "bf16"}


def openvino(model: Path | bytes, precision: str) -> Embed:
    """The artifact's ONNX file in OpenVINO. precision: its name for it, f32 or bf16."""
    import openvino as ov

    source = io.BytesIO(model) if isinstance(model, bytes) else model
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": available_cpus(),
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(source, "CPU", settings).create_infer_request()

    def embed(images: Images) -> Floats:
        request.infer({0: images})
        return np.array(request.get_output_tensor(0).data)  # its memory is used again by the next call

    return embed


def measure(found: dict[str, Embed], images: Images, rounds: int) -> dict[str, Any]:
    """Of each engine: milliseconds of an image by size of batch, and how near it is to the reference."""
    times: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in found}
    for _ in range(rounds):  # in turn, so that what disturbs the machine disturbs all
        for name, embed in found.items():
            for batch in BATCHES:
                times[name][batch].append(_milliseconds(embed, images[:batch]))
    embeddings = {name: _all(embed, images) for name, embed in found.items()}
    reference = embeddings[REFERENCE]
    kmeans = faiss.Kmeans(reference.shape[1], K, seed=0, spherical=True, verbose=False)
    kmeans.train(reference)
    nearest = (reference @ kmeans.centroids.T).argmax(axis=1)
    return {
        name: {
            "ms": {batch: float(np.median(found_times)) for batch, found_times in times[name].items()},
            "range": {batch: [min(found_times), max(found_times)] for batch, found_times in times[name].items()},
            "min_cosine": float((reference * embeddings[name]).sum(axis=1).min()),
            "agreement": float(((embeddings[name] @ kmeans.centroids.T).argmax(axis=1) == nearest).mean()),
            "images": len(images),
        }
        for name in found
    }


def _milliseconds(embed: Embed, images: Images) -> float:
    embed(images)
    done, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < SECONDS:
        embed(images)
        done += len(images)
    return seconds * 1e3 / done


def _all(embed: Embed, images: Images) -> Floats:
    parts = [embed(images[start : start + 32]) for start in range(0, len(images), 32)]
    joined = np.concatenate(parts).astype(np.float32)
    unit: Floats = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    return unit


def _print(report: dict[str, Any], console: Console) -> None:
    on = report["machine"]
    console.print(f"{on['cpu']}, {on['cores']} cores, load {on['load']}; {on['date'][:10]}; milliseconds an image")
    for encoder, results in report["encoders"].items():
        count = next(iter(results.values()))["images"]
        table = Table(title=f"{encoder}; {count} images")
        for column in ("engine", *(f"batch {b}" for b in BATCHES), "times as fast", "cosine", "same nearest", "gate"):
            table.add_column(column)
        for name, result in results.items():
            faster = max(results[REFERENCE]["ms"][b] / result["ms"][b] for b in BATCHES)
            passed = result["min_cosine"] >= MIN_COSINE and result["agreement"] >= MIN_AGREEMENT
            table.add_row(
                name,
                *(f"{result['ms'][b]:.2f}" for b in BATCHES),
                f"{faster:.2f}",
                f"{result['min_cosine']:.5f}",
                f"{result['agreement']:.2%}",
                "passed" if passed else "not passed",
            )
        console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="to compare embeddings on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/engines.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
