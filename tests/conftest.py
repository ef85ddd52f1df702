"""Fixtures that more than one package's tests need."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft, SelfTest
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog, Category, new_id
from deepmcat_core.frame import FramePolicy
from deepmcat_core.manifest import EncoderSpec, Manifest
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_core.tree import Merge, MergeTree

K, D, SIZE = 4, 16, 32


class RandomProjection:
    """An engine without a framework: a fixed random matrix over the pixels, normalised."""

    name = "random-projection"
    device = "cpu"
    dim = D

    def __init__(self, size: int = SIZE) -> None:
        self.matrix = np.random.default_rng(7).normal(size=(size * size, D)).astype(np.float32)

    def embed(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        flat = images.reshape(len(images), -1).astype(np.float32) / 255 - 0.5
        embeddings = flat @ self.matrix
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return (embeddings / np.maximum(norms, 1e-12)).astype(np.float32)

    def warm(self, batches: object) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to close."""


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows of unit length, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def prototypes(size: int = SIZE) -> npt.NDArray[np.uint8]:
    """K clearly different images, (K, 1, size, size)."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, size=(K, 1, 4, 4), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 1, size // 4, size // 4), dtype=np.uint8))


@pytest.fixture(name="engine")
def engine_fixture() -> RandomProjection:
    return RandomProjection()


@pytest.fixture(name="draft")
def draft_fixture(engine: RandomProjection) -> Draft:
    """Everything of a tiny artifact: four clusters, two categories, 300 calibration scores."""
    images = prototypes()
    centroids = engine.embed(images)
    rng = np.random.default_rng(0)
    tree = MergeTree(
        k=K,
        merges=(
            Merge(left=0, right=1, height=0.1),
            Merge(left=2, right=3, height=0.2),
            Merge(left=4, right=5, height=1),
        ),
        linkage="average",
    )
    clusters = np.repeat(np.arange(K), 75)
    distances = rng.uniform(0.05, 0.15, size=len(clusters)).astype(np.float32)
    calibration = Calibration.fit(
        tree=tree, fit_clusters=clusters, fit_distances=distances, clusters=clusters, distances=distances
    )
    catalog = Catalog(
        version=1,
        k=K,
        categories=(
            Category(id=new_id(), name="CT chest", clusters=(0, 1), fit_images=150),
            Category(id=new_id(), name="MR head", clusters=(2, 3), fit_images=150),
        ),
    )
    manifest = Manifest(
        created_at="2026-01-01T00:00:00Z",
        encoder=EncoderSpec(name="random-projection"),
        preprocessing=Preprocessing(size=SIZE),
        frames=FramePolicy(count=3),
        k=K,
        dim=D,
        training={"recipe": "test", "seed": 0},
        decoders=("pydicom 3",),
    )
    return Draft(
        manifest=manifest,
        encoder={"matrix": engine.matrix},
        centroids=centroids,
        tree=tree,
        calibration=calibration,
        catalog=catalog,
        self_test=SelfTest(images=images, embeddings=centroids),
    )


@pytest.fixture(name="artifact_folder")
def artifact_folder_fixture(tmp_path: Path, draft: Draft) -> Path:
    """A tiny artifact on disk."""
    artifacts.write(tmp_path / "artifact", draft)
    return tmp_path / "artifact"


@pytest.fixture(name="artifact")
def artifact_fixture(artifact_folder: Path) -> Artifact:
    return Artifact.load(artifact_folder)


@pytest.fixture(name="changed")
def changed_fixture(draft: Draft) -> Callable[..., Draft]:
    """The draft with some of its manifest changed."""
    return lambda **changes: dataclasses.replace(draft, manifest=dataclasses.replace(draft.manifest, **changes))


@pytest.fixture(name="data_dir")
def data_dir_fixture() -> Path:
    """The folder of image sets, or a skip that says what is missing."""
    folder = os.environ.get("DEEPMCAT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DEEPMCAT_DATA does not name a folder of image sets (docs/data.md)")
    return Path(folder)
