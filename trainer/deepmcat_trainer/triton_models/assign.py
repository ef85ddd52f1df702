"""From embeddings to categories, in Triton's Python backend. Needs numpy and the two files beside it.

    embedding (n, D) ─► cluster, category_id, category, distance, p_value, outlier, each (n,)

Written by `deepmcat export --triton`. It computes what DeepMCAT's own server does (nearest centroid by cosine, split
conformal p-value), for one catalog version: names that change later need another export.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton brings it

TABLES, CATALOG = "tables.npz", "catalog.json"


class TritonPythonModel:
    """What Triton makes one of, and asks."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tables. args: Triton's, with the model's folder and version."""
        folder = Path(args["model_repository"]) / args["model_version"]
        with np.load(folder / TABLES, allow_pickle=False) as tables:
            self._centroids = tables["centroids"]  # (K, D) unit vectors
            self._scores = tables["scores"]  # ascending within each group
            self._offsets = tables["offsets"]  # (G+1,) where each group starts
            self._groups = tables["groups"]  # (K,) the group of each cluster
            self._mean_distances = tables["mean_distances"]  # (K,)
        catalog = json.loads((folder / CATALOG).read_bytes())
        self._alpha: float = catalog["alpha"]
        self._min_verdict: int = catalog["min_verdict"]
        self._unknown: str = catalog["unknown"]
        self._ids: list[str] = catalog["category_ids"]
        self._names: list[str] = catalog["categories"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        embedding = pb_utils.get_input_tensor_by_name(request, "embedding").as_numpy()
        tensors = [pb_utils.Tensor(name, values) for name, values in self.assign(embedding).items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def assign(self, embeddings: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name; embeddings: (n, D) float32 unit vectors."""
        similarities = embeddings @ self._centroids.T  # (n, K)
        clusters = similarities.argmax(axis=1)
        nearest = similarities[np.arange(len(clusters)), clusters]
        distances = np.clip(1 - nearest, 0, 2).astype(np.float32)
        p_values = self._p_values(clusters, distances)
        outliers = p_values < self._alpha  # never where there is no verdict: NaN
        return {
            "cluster": clusters.astype(np.int64),
            "category_id": self._texts(self._ids, clusters, outliers),
            "category": self._texts(self._names, clusters, outliers),
            "distance": distances,
            "p_value": p_values,
            "outlier": outliers,
        }

    def _p_values(self, clusters: np.ndarray[Any, Any], distances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The share of the group's calibration images at least as far, (n,); NaN where there are too few."""
        p_values = np.full(len(clusters), np.nan)
        scores = (distances / self._mean_distances[clusters]).astype(np.float32)
        for i, group in enumerate(self._groups[clusters]):
            low, high = int(self._offsets[group]), int(self._offsets[group + 1])
            count = high - low
            if count >= self._min_verdict:
                as_far = count - int(np.searchsorted(self._scores[low:high], scores[i], side="left"))
                p_values[i] = (1 + as_far) / (count + 1)
        return p_values

    def _texts(
        self, texts: Sequence[str], clusters: np.ndarray[Any, Any], outliers: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """The text of each row's cluster as bytes, which is how Triton has strings."""
        rows = zip(clusters, outliers, strict=True)
        return np.array([(self._unknown if out else texts[c]).encode() for c, out in rows], dtype=np.object_)
