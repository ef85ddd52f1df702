"""Triton's Python backend: a dynamic batch is run as one, and each request gets its rows."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils
import work


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self._work = work.from_environment()

    def execute(self, requests: list) -> list:
        planes = [pb_utils.get_input_tensor_by_name(request, "plane").as_numpy() for request in requests]
        embeddings = self._work(np.concatenate(planes))
        parts = np.split(embeddings, np.cumsum([len(part) for part in planes])[:-1])
        tensors = [pb_utils.Tensor("embedding", np.ascontiguousarray(part)) for part in parts]
        return [pb_utils.InferenceResponse(output_tensors=[tensor]) for tensor in tensors]
