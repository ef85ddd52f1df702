"""What the trainer makes and everything else loads: a directory, or the same packed into one file.

    manifest.json            what it is, and the SHA-256 of every file but the catalog
    encoder.safetensors      weights
    engines/encoder.onnx     optional, behind the equality gate
    centroids.safetensors    (K, D) float32
    tree.json                how fine clusters merge
    calibration.safetensors  held-out scores
    selftest.safetensors     synthetic inputs and their embeddings
    catalog/000001.json …    append-only versions of the categories

Nothing executable, no pixels, no patient text. `artifact_id` is the digest of the manifest, which names the digest
of every other file: it changes with anything but the catalog.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from deepmcat_core import catalog as catalogs
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog
from deepmcat_core.centroids import Centroids
from deepmcat_core.durable import sync_directory, write_synced
from deepmcat_core.errors import ArtifactDamaged, ArtifactFormat, ArtifactMissing, ArtifactSelfTest, ConfigError
from deepmcat_core.manifest import Manifest
from deepmcat_core.packed import Unpacked, member, pack
from deepmcat_core.tree import MergeTree

SELF_TEST_COSINE = 0.9999

Tensors = dict[str, npt.NDArray[Any]]

MANIFEST, ENCODER, ONNX = "manifest.json", "encoder.safetensors", "engines/encoder.onnx"
CENTROIDS, TREE, CALIBRATION = "centroids.safetensors", "tree.json", "calibration.safetensors"
SELF_TEST, CATALOG = "selftest.safetensors", "catalog"

_FILES = (MANIFEST, ENCODER, ONNX, CENTROIDS, TREE, CALIBRATION, SELF_TEST)
_MEMBER = re.compile("|".join([*map(re.escape, _FILES), rf"{CATALOG}/\d{{6}}\.json"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """Synthetic inputs (n, 1, size, size) uint8 and the embeddings (n, D) float32 they had when it was made."""

    images: npt.NDArray[np.uint8]
    embeddings: npt.NDArray[np.float32]

    def check(self, embeddings: npt.NDArray[np.float32], cosine: float = SELF_TEST_COSINE) -> float:
        """The lowest cosine between `embeddings` and the recorded ones. Raises ArtifactSelfTest below `cosine`."""
        if embeddings.shape != self.embeddings.shape or not np.isfinite(embeddings).all():
            raise ArtifactSelfTest("the encoder's self-test gave embeddings of another shape, or not finite ones")
        lowest = float(np.einsum("bd,bd->b", embeddings, self.embeddings).min())
        if lowest < cosine:
            raise ArtifactSelfTest(f"the encoder's self-test gave cosine {lowest:.6f}; at least {cosine:g} is needed")
        return lowest


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Everything of an artifact that is not derived: what `write` takes. `onnx`: the engine's file, if any."""

    manifest: Manifest
    encoder: Mapping[str, npt.NDArray[Any]]
    centroids: npt.NDArray[np.float32]
    tree: MergeTree
    calibration: Calibration
    catalog: Catalog
    self_test: SelfTest
    onnx: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A verified artifact. `folder`: where its files are (a temporary copy for a packed one)."""

    artifact_id: str
    folder: Path
    manifest: Manifest
    centroids: npt.NDArray[np.float32]
    tree: MergeTree
    calibration: Calibration
    catalog: Catalog
    self_test: SelfTest
    unpacked: Unpacked | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path | str) -> Artifact:
        """Load and verify: format version, digests, shapes, finiteness. Raises ArtifactError, a kind per damage.

        The self-test needs an engine and is run where one is opened (engine.open_engine).
        """
        path = Path(path)
        if not path.exists():
            raise ArtifactMissing(f"there is no artifact at {path}; deepmcat train DATASET --out {path} makes one")
        unpacked = None
        folder = path
        if path.is_file():
            unpacked = Unpacked(path, _MEMBER)
            folder = unpacked.folder
        if not (folder / MANIFEST).is_file():
            raise ArtifactMissing(f"{path} is not an artifact: it has no {MANIFEST}; give what `deepmcat train` made")
        try:
            return cls._read(folder, unpacked)
        except ArtifactDamaged as error:
            way_out = "copy the artifact again from where it was made, or train a new one"
            raise ArtifactDamaged(f"{path}: {error}; {way_out}") from error

    @classmethod
    def _read(cls, folder: Path, unpacked: Unpacked | None) -> Artifact:
        text = (folder / MANIFEST).read_bytes()
        manifest = Manifest.from_json(text)
        _verify_digests(folder, manifest)
        artifact = cls(
            artifact_id=_digest(text),
            folder=folder,
            manifest=manifest,
            centroids=_tensors(folder, CENTROIDS, "centroids")[0],
            tree=MergeTree.from_json(_json(folder, TREE)),
            calibration=_load_calibration(folder),
            catalog=catalogs.read_newest(folder / CATALOG),
            self_test=_load_self_test(folder),
            unpacked=unpacked,
        )
        artifact._verify_shapes()
        return artifact

    @property
    def onnx(self) -> Path | None:
        """The ONNX engine's file, where the artifact has one."""
        return self.folder / ONNX if ONNX in self.manifest.files else None

    def encoder_weights(self) -> Tensors:
        """The encoder's weights by name."""
        return _load_tensors(self.folder, ENCODER)

    def reload_catalog(self) -> Catalog:
        """The catalog in force now; another process may have appended a version."""
        return catalogs.read_newest(self.folder / CATALOG)

    def append_catalog(self, catalog: Catalog) -> None:
        """Put a new catalog version in force. Raises ConfigError on a packed artifact or when somebody was faster."""
        if self.unpacked is not None:
            raise ConfigError("a packed artifact is read-only; unpack it with tar first")
        catalogs.append(self.folder / CATALOG, catalog)

    def pack(self, target: Path) -> None:
        """Write the artifact as one file; equal content gives an equal file."""
        pack(self.folder, target)

    def _verify_shapes(self) -> None:
        m, size = self.manifest, self.manifest.preprocessing.size
        checks = {
            CENTROIDS: self.centroids.shape == (m.k, m.dim) and self.centroids.dtype == np.float32,
            TREE: self.tree.k == m.k,
            CALIBRATION: len(self.calibration.groups) == m.k,
            CATALOG: self.catalog.k == m.k,
            SELF_TEST: self.self_test.images.shape[1:] == (1, size, size)
            and self.self_test.embeddings.shape == (len(self.self_test.images), m.dim),
        }
        for name, fits in checks.items():
            if not fits:
                raise ArtifactDamaged(f"{name} does not fit the manifest (K = {m.k}, D = {m.dim})")
        Centroids(self.centroids)  # finite and of unit length


def identify(path: Path) -> str:
    """The id that an artifact states, read from its manifest alone and nothing verified. Raises ArtifactError."""
    try:
        return _digest(member(path, MANIFEST) if path.is_file() else (path / MANIFEST).read_bytes())
    except OSError as error:
        raise ArtifactMissing(f"there is no artifact at {path}") from error


def write(target: Path, draft: Draft) -> str:
    """Write an artifact and return its id: to a temporary name, fsynced, renamed.

    Raises ConfigError where target exists or cannot be written; then nothing is left behind.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another --out or remove it")
    try:
        return _write(target, draft)
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror}; free some space or choose another --out"
        ) from error


def _write(target: Path, draft: Draft) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)
        files = _files(draft)
        for name, content in files.items():
            _write_file(temporary / name, content)
        digests = {name: _digest(content) for name, content in files.items()}
        text = replace(draft.manifest, files=digests).to_json()
        _write_file(temporary / MANIFEST, text)
        (temporary / CATALOG).mkdir()
        catalogs.append(temporary / CATALOG, draft.catalog)
        for folder in [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]:
            sync_directory(folder)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(target.parent)
    return _digest(text)


def _files(draft: Draft) -> dict[str, bytes]:
    c, t = draft.calibration, draft.self_test
    calibration: Tensors = {
        "scores": c.scores, "offsets": c.offsets, "groups": c.groups, "mean_distances": c.mean_distances,
        "alpha": np.array([c.alpha]), "images": np.array([c.images]),
    }  # fmt: skip
    files = {
        ENCODER: _save(draft.encoder),
        CENTROIDS: _save({"centroids": draft.centroids}),
        TREE: json.dumps(draft.tree.to_json()).encode(),
        CALIBRATION: _save(calibration),
        SELF_TEST: _save({"images": t.images, "embeddings": t.embeddings}),
    }
    return files if draft.onnx is None else {**files, ONNX: draft.onnx}


def _save(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in tensors.items()})


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verify_digests(folder: Path, manifest: Manifest) -> None:
    required = {ENCODER, CENTROIDS, TREE, CALIBRATION, SELF_TEST}
    if missing := required - manifest.files.keys():
        raise ArtifactDamaged(f"the manifest does not list {sorted(missing)[0]}")
    for name, expected in manifest.files.items():
        if name not in required | {ONNX}:
            raise ArtifactFormat(f"the manifest lists a file {name!r} that this release does not know")
        path = folder / name
        if not path.is_file():
            raise ArtifactDamaged(f"{name} is missing from the artifact")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ArtifactDamaged(f"{name} has changed since the artifact was made (its SHA-256 differs)")


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_bytes())
    except ValueError as error:
        raise ArtifactDamaged(f"{name} is not JSON") from error
    if not isinstance(data, dict):
        raise ArtifactDamaged(f"{name} does not hold an object")
    return data


def _load_tensors(folder: Path, name: str) -> Tensors:
    try:
        tensors: Tensors = safetensors.numpy.load_file(folder / name)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactDamaged(f"{name} is not a safetensors file") from error
    return tensors


def _tensors(folder: Path, name: str, *keys: str) -> list[npt.NDArray[Any]]:
    tensors = _load_tensors(folder, name)
    if missing := set(keys) - tensors.keys():
        raise ArtifactDamaged(f"{name} lacks {sorted(missing)[0]!r}")
    return [tensors[key] for key in keys]


def _load_calibration(folder: Path) -> Calibration:
    names = ("images", "alpha", "scores", "offsets", "groups", "mean_distances")
    images, alpha, scores, offsets, groups, mean_distances = _tensors(folder, CALIBRATION, *names)
    kinds = [f"{tensor.dtype.kind}{tensor.dtype.itemsize}" for tensor in (scores, offsets, groups, mean_distances)]
    if images.shape != (1,) or alpha.shape != (1,) or kinds != ["f4", "i8", "i8", "f4"]:
        raise ArtifactDamaged(f"{CALIBRATION} does not hold a calibration")
    return Calibration(
        images=int(images[0]),
        scores=scores,
        offsets=offsets,
        groups=groups,
        mean_distances=mean_distances,
        alpha=float(alpha[0]),
    )


def _load_self_test(folder: Path) -> SelfTest:
    images, embeddings = _tensors(folder, SELF_TEST, "images", "embeddings")
    if images.dtype != np.uint8 or images.ndim != 4 or embeddings.ndim != 2 or len(images) == 0:
        raise ArtifactDamaged(f"{SELF_TEST} does not hold a self-test")
    return SelfTest(images=images, embeddings=embeddings)
