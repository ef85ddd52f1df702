"""The encoder in Triton's Python backend, by ONNX Runtime: for servers without the ONNX Runtime backend.

    images (n, 1, S, S) uint8 ─► embeddings (n, D) float32

Written by `deepmcat export --triton … --backend python`. Needs onnxruntime in the backend's environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: from 1.29 on it tells Microsoft what it runs
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton brings it

MODEL = "model.onnx"


class TritonPythonModel:
    """What Triton makes one of, and asks."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the encoder. args: Triton's, with the model's folder and version."""
        path = Path(args["model_repository"]) / args["model_version"] / MODEL
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request: Triton's dynamic batch, run as one."""
        images = [pb_utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        embeddings = self._session.run(["embeddings"], {"images": np.concatenate(images)})[0]
        parts = np.split(embeddings, np.cumsum([len(part) for part in images])[:-1])
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("embeddings", np.ascontiguousarray(part))])
            for part in parts
        ]
