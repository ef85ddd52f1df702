"""A small encoder, images for it, and artifacts of it on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft
from deepmcat_core.encoder import Encoder, build_encoder
from deepmcat_core.manifest import EncoderSpec

SIZE = 32
SPEC = EncoderSpec(name="small-vgg-sobel", options={"projection": {"kind": "linear", "in": 256, "out": 16}})


def seeded_encoder() -> Encoder:
    """An encoder whose random weights are the same each time."""
    torch.manual_seed(0)
    return build_encoder(SPEC)


def images(count: int) -> npt.NDArray[np.uint8]:
    """Noise, (count, 1, SIZE, SIZE)."""
    return np.random.default_rng(0).integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8)


def written(folder: Path, draft: Draft) -> Artifact:
    """The artifact of a draft, written to `folder` / "a" and read back."""
    artifacts.write(folder / "a", draft)
    return Artifact.load(folder / "a")
