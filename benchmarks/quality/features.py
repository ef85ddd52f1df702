"""Raw features of all images, once an encoder: a cell that works on them does not wait for the encoder again.

    features/<encoder>-<hash>.npy    (n, F) float32, in the order of corpus.rows, not normalised
    features/<encoder>-<hash>.json   how long that took, on which machine

The hash is of the images, the encoder's weights and its source: anything else that changes leaves the features alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.quality import sources

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.durable import write_synced
from deepmcat_core.encoder import Encoder, build_encoder, parse_encoder, pretrained
from deepmcat_core.engine import Engine
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.features import embed
from deepmcat_trainer.onnx_export import export_onnx
from deepmcat_trainer.seeds import Use, derive

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ENCODER = "efficientnet-lite0"
SOURCES = ("core/deepmcat_core/encoder.py", "core/deepmcat_core/backbones/*.py")
BATCH = 4096


class Given(Backbone):
    """A backbone whose features have been computed already: (B, 1, 1, F) to (B, F)."""

    mean = (0.0,)
    std = (1.0,)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The features as they are."""
        return images.flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An encoder to take features from. weights_seed: of random weights, None for pretrained ones.

    stages: of the network, that features are read after on a grid of quarters; none: after its head.
    """

    encoder: str = ENCODER
    weights_seed: int | None = None
    stages: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What files and people call it."""
        name = re.sub(r"[^a-z0-9-]+", "-", self.encoder.lower()).strip("-")
        name += "".join(f"-{stage}" for stage in self.stages)
        return name if self.weights_seed is None else f"{name}-random-{self.weights_seed}"

    def build(self) -> Encoder:
        """The encoder, without a projection. Raises ConfigError, MissingExtra."""
        spec = parse_encoder(self.encoder)
        if self.stages:
            spec = replace(spec, options={**spec.options, "pool": "grid2", "stages": list(self.stages)})
        if self.weights_seed is None:
            return pretrained(spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.weights_seed, Use.WEIGHTS))
            return build_encoder(spec).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The cached features of the images at `rows` of a corpus with `digest`.

    weights: the digests of encoders asked for so far, so that a cell's process need not load the encoder again.
    """

    folder: Path
    digest: str
    rows: Ints
    weights: dict[Source, str] = field(default_factory=dict)

    def path(self, source: Source) -> Path:
        """Where the features are, or would be."""
        if source not in self.weights:
            self.weights[source] = "" if source.weights_seed is not None else _weights_digest(source)
        parts = (self.digest, sources.digest(SOURCES), self.weights[source])
        return self.folder / f"{source.name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}.npy"

    def make(self, source: Source, images: npt.NDArray[np.uint8], device: str, measured_on: dict[str, Any]) -> None:
        """Compute and keep the features."""
        start = time.monotonic()
        features = raw(source.build(), images, self.rows, device)
        seconds = time.monotonic() - start
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(source)
        record = {
            "encoder": source.name,
            "images": len(self.rows),
            "seconds": round(seconds, 1),
            "images_per_s": round(len(self.rows) / seconds, 1),
            "peak_mb": peak_mb(),
            "device": device,
            "machine": measured_on,
        }
        write_synced(path.with_suffix(".json"), json.dumps(record, indent=1).encode())
        partial = path.with_suffix(".partial.npy")
        np.save(partial, features)
        partial.rename(path)

    def at(self, source: Source, rows: Ints) -> Floats:
        """The raw features (n, F) of rows of the corpus."""
        features: Floats = np.load(self.path(source), mmap_mode="r", allow_pickle=False)
        return np.ascontiguousarray(features[np.searchsorted(self.rows, rows)])

    def record(self, source: Source) -> dict[str, Any]:
        """What is known of how the features were made."""
        found: dict[str, Any] = json.loads(self.path(source).with_suffix(".json").read_text())
        return found


def peak_mb() -> int:
    """The most memory that this process has had so far, what it imported included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def raw(encoder: Encoder, images: npt.NDArray[np.uint8], rows: Ints, device: str) -> Floats:
    """The encoder's features (n, F) before projection and normalisation, through the engines that serve.

    Engines give unit vectors. A projection that leaves the features as they are and appends a 1 makes the length
    readable from the last entry.
    """
    dim = encoder.backbone.dim
    weight = np.vstack([np.eye(dim, dtype=np.float32), np.zeros((1, dim), dtype=np.float32)])
    bias = np.append(np.zeros(dim, dtype=np.float32), np.float32(1))
    engine: Engine
    marked = encoder.projected(weight, bias).eval()
    if device == "cpu":
        engine = OnnxEngine(export_onnx(marked, images.shape[1]))
    else:
        engine = TorchEngine(marked, device, size=images.shape[1])
    units = embed(engine, images, rows, description="embedding")
    engine.close()
    return np.ascontiguousarray(units[:, :-1] / units[:, -1:])


def embeddings(encoder: Encoder, features: Floats, device: str) -> Floats:
    """What `encoder` makes of its own backbone's features (n, F): its projection and normalisation, (n, D)."""
    projection = encoder.spec.options.get("projection")
    options = {} if projection is None else {"projection": projection}
    head = Encoder(EncoderSpec(name=encoder.spec.name, options=options), Given(features.shape[1]))
    head.projection.load_state_dict(encoder.projection.state_dict())
    head.eval().to(device)
    with torch.inference_mode():
        parts = [
            head(torch.from_numpy(features[start : start + BATCH, None, None]).to(device)).cpu()
            for start in range(0, len(features), BATCH)
        ]
    return torch.cat(parts).numpy() if parts else np.empty((0, head.dim), dtype=np.float32)


def unprojected(source: Source, features: Floats) -> Floats:
    """The unit embeddings of an encoder without a projection, (n, F)."""
    return embeddings(Encoder(parse_encoder(source.encoder), Given(features.shape[1])), features, "cpu")


def _weights_digest(source: Source) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(source.build().weights().items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()
