"""The engine for a CPU: ONNX Runtime, on the file that the trainer exported and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepmcat_core.cpus import available_cpus
from deepmcat_core.engine import LARGEST_BATCH, Floats, Images, OutOfMemory, batches, checked_embeddings, checked_images
from deepmcat_core.errors import ArtifactDamaged, InferenceError, MissingExtra

INPUT, OUTPUT = "images", "embeddings"

_ERRORS_ONLY = 3  # ONNX Runtime's log severity
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "Available memory of")  # it has no class for it


class OnnxEngine:
    """Runs an ONNX file on the CPU. Its input is uint8 (B, 1, S, S) with S fixed, its output (B, D)."""

    name = "onnx"
    device = "cpu"
    precision = "float32"

    def __init__(self, model: Path | bytes, *, threads: int | None = None) -> None:
        """threads: all the CPUs that this process may use where None. Raises MissingExtra, ArtifactDamaged."""
        self._session: Any = _session(model, threads or available_cpus())
        shapes = {value.name: value.shape for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        if shapes.keys() != {INPUT, OUTPUT} or len(shapes[INPUT]) != 4 or len(shapes[OUTPUT]) != 2:
            raise ArtifactDamaged(f"the ONNX engine does not map {INPUT!r} to {OUTPUT!r}")
        self._size = int(shapes[INPUT][-1])
        self.dim = int(shapes[OUTPUT][-1])

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8 → (B, D) float32 unit vectors, in batches of a bounded size. Raises InferenceError."""
        images = checked_images(images)
        if self._session is None:
            raise InferenceError("the engine is closed")
        if images.shape[-1] != self._size:
            raise InferenceError(f"images have {images.shape[-1]} px a side; this engine takes {self._size}")
        embeddings = np.empty((len(images), self.dim), dtype=np.float32)
        done = 0
        for part in batches(images, LARGEST_BATCH["cpu"]):
            embeddings[done : done + len(part)] = self._run(part)
            done += len(part)
        return checked_embeddings(embeddings, (len(images), self.dim))

    def warm(self, batches: Sequence[int]) -> None:
        """Run once with each of these batch sizes."""
        for count in batches:
            self.embed(np.zeros((count, 1, self._size, self._size), dtype=np.uint8))

    def close(self) -> None:
        """Free the session's memory and threads."""
        self._session = None

    def _run(self, images: Images) -> Floats:
        try:
            embeddings: Floats = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            if any(sign in str(error) for sign in _NO_MEMORY):
                raise OutOfMemory(f"ONNX Runtime ran out of memory on a batch of {len(images)}") from error
            raise InferenceError(f"the encoder failed on a batch of {len(images)} in ONNX Runtime") from error
        return embeddings


def _session(model: Path | bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "cpu") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ArtifactDamaged(f"ONNX Runtime {onnxruntime.__version__} cannot load the ONNX engine") from error
