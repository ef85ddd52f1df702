"""The artifacts that take turns, the link that servers follow, and a damaged one that they must refuse.

shelf/a  shelf/b  shelf/c     different clusters, input sizes and calibrations
shelf/damaged                 says that it is another one, and is not whole
shelf/current ──► one of them, replaced by a rename
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.conftest import onnx_projection, unit

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft, SelfTest
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog, Category, new_id
from deepmcat_core.frame import FramePolicy
from deepmcat_core.manifest import EncoderSpec, Manifest
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_core.tree import Merge, MergeTree

K, D = 12, 16
CALIBRATED, UNCALIBRATED = 400, 20  # held-out scores: with and without verdicts
DAMAGED = "damaged"


class Shelf:
    """The artifacts on disk. catalogs: by artifact and version, each known here before a server can find it.

    turn: held by whoever starts a server or has something damaged at the link, because that server would not start.
    """

    def __init__(self, folder: Path) -> None:
        self.link = folder / "current"
        self._folder = folder
        self.turn = asyncio.Lock()
        self.artifacts = {
            name: Artifact.load(folder / name)
            for name, size, calibrated in (("a", 32, CALIBRATED), ("b", 48, CALIBRATED), ("c", 32, UNCALIBRATED))
            if artifacts.write(folder / name, _draft(ord(name), size, calibrated))
        }
        self.catalogs = {a.artifact_id: {1: a.catalog} for a in self.artifacts.values()}
        _damage(folder / "a", folder / DAMAGED)
        self.put("a")

    @property
    def current(self) -> str:
        """Where the link leads."""
        return self.link.readlink().name

    def put(self, name: str) -> None:
        """Let the link lead to one of them, all at once."""
        arriving = self._folder / ".current"
        arriving.symlink_to(name)
        arriving.rename(self.link)

    def rename_categories(self, name: str) -> Catalog:
        """Append a version to an artifact's catalog in which every category has another name."""
        artifact = self.artifacts[name]
        known = self.catalogs[artifact.artifact_id]
        newest = known[max(known)]
        renamed = (replace(c, name=f"{c.name.partition(',')[0]}, {newest.version + 1}") for c in newest.categories)
        catalog = newest.succeed(renamed)
        known[catalog.version] = catalog
        artifact.append_catalog(catalog)
        return catalog


def _draft(seed: int, size: int, calibrated: int) -> Draft:
    """Random clusters. Most images of a corpus are within the calibration's distances, and some are not."""
    rng = np.random.default_rng(seed)
    images = np.kron(rng.integers(0, 256, (K, 1, 4, 4), np.uint8), np.ones((1, 1, size // 4, size // 4), np.uint8))
    matrix = rng.normal(size=(size * size, D)).astype(np.float32)
    centroids = unit((images.reshape(K, -1).astype(np.float32) / 255 - 0.5) @ matrix)
    merges = tuple(Merge(left=0 if n == 0 else K + n - 1, right=n + 1, height=0.1 * (n + 1)) for n in range(K - 1))
    tree = MergeTree(k=K, merges=merges, linkage="average")
    clusters, distances = np.arange(calibrated) % K, rng.uniform(0.1, 0.8, calibrated).astype(np.float32)
    categories = tuple(
        Category(id=new_id(), name=f"kind {n}", clusters=(2 * n, 2 * n + 1), fit_images=100) for n in range(K // 2)
    )
    return Draft(
        manifest=Manifest(
            created_at="2026-01-01T00:00:00Z",
            encoder=EncoderSpec(name="random-projection"),
            preprocessing=Preprocessing(size=size),
            frames=FramePolicy(count=3),
            k=K,
            dim=D,
            training={"recipe": "soak", "seed": seed},
            decoders=("pydicom 3",),
        ),
        encoder={"matrix": matrix},
        centroids=centroids,
        tree=tree,
        calibration=Calibration.fit(
            tree=tree, fit_clusters=clusters, fit_distances=distances, clusters=clusters, distances=distances
        ),
        catalog=Catalog(version=1, k=K, categories=categories),
        self_test=SelfTest(images=images, embeddings=centroids),
        onnx=onnx_projection(matrix),
    )


def _damage(whole: Path, target: Path) -> None:
    """A copy that claims to be another artifact, with one file that is not what its manifest says."""
    shutil.copytree(whole, target)
    manifest = target / artifacts.MANIFEST
    manifest.write_text(manifest.read_text().replace("2026-01-01", "2025-01-01"))
    (target / artifacts.TREE).write_text("{}")
