"""Artifacts: what is written is what is loaded, and every kind of damage has a clear error."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft
from deepmcat_core.errors import ArtifactDamaged, ArtifactFormat, ArtifactMissing, ArtifactSelfTest, ConfigError


def rewrite(folder: Path, file: str, name: str, tensor: np.ndarray, *, alone: bool = False) -> None:
    """Put another tensor into a file of an artifact, and its digest into the manifest."""
    path = folder / file
    tensors = {} if alone else safetensors.numpy.load_file(path)
    path.write_bytes(safetensors.numpy.save({**tensors, name: tensor}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_written_is_loaded(artifact_folder: Path, draft: Draft) -> None:
    """Weights, centroids, tree, calibration, catalog and self-test survive the disk bit for bit."""
    artifact = Artifact.load(artifact_folder)

    np.testing.assert_array_equal(artifact.centroids, draft.centroids)
    np.testing.assert_array_equal(artifact.encoder_weights()["matrix"], draft.encoder["matrix"])
    np.testing.assert_array_equal(artifact.calibration.scores, draft.calibration.scores)
    assert artifact.tree == draft.tree
    assert artifact.catalog == draft.catalog
    assert artifact.manifest.preprocessing == draft.manifest.preprocessing
    assert artifact.onnx is None


def test_id_is_of_everything_but_the_catalog(artifact_folder: Path) -> None:
    """Renaming a category changes the catalog version and not the artifact's id."""
    before = Artifact.load(artifact_folder)

    before.append_catalog(before.catalog.succeed(before.catalog.categories))
    after = Artifact.load(artifact_folder)

    assert after.artifact_id == before.artifact_id
    assert (before.catalog.version, after.catalog.version) == (1, 2)


def test_writing_never_replaces(artifact_folder: Path, draft: Draft) -> None:
    """An artifact is never overwritten, and a failed write leaves nothing behind."""
    with pytest.raises(ConfigError, match="exists already"):
        artifacts.write(artifact_folder, draft)

    assert [p.name for p in artifact_folder.parent.iterdir()] == ["artifact"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, draft: Draft) -> None:
    """A write that breaks off half-way leaves no folder, whole or partial."""
    object.__setattr__(draft, "catalog", None)

    with pytest.raises(AttributeError):
        artifacts.write(tmp_path / "out" / "artifact", draft)

    assert list((tmp_path / "out").iterdir()) == []


def test_packed_is_the_same_artifact(artifact_folder: Path, tmp_path: Path) -> None:
    """A packed artifact loads with the same id; packing twice gives the same bytes; its catalog is read-only."""
    artifact = Artifact.load(artifact_folder)
    artifact.pack(tmp_path / "a.tar")
    artifact.pack(tmp_path / "b.tar")

    packed = Artifact.load(tmp_path / "a.tar")

    assert packed.artifact_id == artifact.artifact_id
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with pytest.raises(ConfigError, match="read-only"):
        packed.append_catalog(packed.catalog.succeed(packed.catalog.categories))


def test_nothing_executable_and_no_pickle(artifact_folder: Path) -> None:
    """An artifact consists of JSON and safetensors only, and nothing in it is executable."""
    files = [p for p in artifact_folder.rglob("*") if p.is_file()]

    assert {p.suffix for p in files} == {".json", ".safetensors"}
    assert not any(p.stat().st_mode & 0o111 for p in files)


@pytest.mark.parametrize(
    "name",
    ["encoder.safetensors", "centroids.safetensors", "calibration.safetensors", "selftest.safetensors", "tree.json"],
)
def test_a_changed_file_is_damage(artifact_folder: Path, name: str) -> None:
    """One flipped bit in any file is noticed, the file is named, and so is the way out."""
    path = artifact_folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactDamaged, match=rf"{name} has changed .* copy the artifact again"):
        Artifact.load(artifact_folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("images", np.zeros(0, dtype=np.int64)),
        ("images", np.array([0])),
        ("alpha", np.zeros((2, 2, 2))),
        ("alpha", np.array([0.0])),
        ("alpha", np.array([np.nan])),
        ("groups", np.zeros(4)),
        ("offsets", np.array([0.0, 300.0])),
        ("scores", np.zeros((300, 1), dtype=np.float32)),
        ("mean_distances", np.ones(4)),
    ],
)
def test_a_calibration_of_other_values(artifact_folder: Path, name: str, tensor: np.ndarray) -> None:
    """Tables of another shape, type or range are damage, even with a digest that fits."""
    rewrite(artifact_folder, "calibration.safetensors", name, tensor)

    with pytest.raises(ArtifactDamaged, match="calibration"):
        Artifact.load(artifact_folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metric", "euclidean"),
        ("metric", None),
        ("frames", {"count": 0}),
        ("frames", 3),
        ("preprocessing", {"version": 1, "size": 32, "intensity": {}}),
        ("preprocessing", {"version": 2, "size": 4, "intensity": {}}),
        ("k", "many"),
    ],
)
def test_a_manifest_of_other_values(artifact_folder: Path, key: str, value: object) -> None:
    """A manifest that says what this release does not do is refused and not guessed at."""
    path = artifact_folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    with pytest.raises(ArtifactFormat):
        Artifact.load(artifact_folder)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "catalog/../../outside", "notes.txt"])
def test_a_packed_artifact_holds_nothing_else(artifact_folder: Path, tmp_path: Path, name: str) -> None:
    """A tar with a member that is no file of an artifact is refused, wherever the member points."""
    Artifact.load(artifact_folder).pack(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())

    with pytest.raises(ArtifactFormat, match="not a file of an artifact"):
        Artifact.load(tmp_path / "a.tar")


def test_a_packed_link_is_not_followed(artifact_folder: Path, tmp_path: Path) -> None:
    """A link in the place of a file is refused."""
    Artifact.load(artifact_folder).pack(tmp_path / "a.tar")
    link = tarfile.TarInfo("engines/encoder.onnx")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(link)

    with pytest.raises(ArtifactFormat, match="not a file of an artifact"):
        Artifact.load(tmp_path / "a.tar")


def test_a_place_that_cannot_be_written(draft: Draft) -> None:
    """Where the artifact cannot be written, one sentence says why."""
    with pytest.raises(ConfigError, match="cannot write /proc/artifact"):
        artifacts.write(Path("/proc/artifact"), draft)


@pytest.mark.parametrize("name", ["encoder.safetensors", "centroids.safetensors", "tree.json", "catalog/000001.json"])
def test_a_missing_file_is_damage(artifact_folder: Path, name: str) -> None:
    """A file that is gone is noticed."""
    (artifact_folder / name).unlink()

    with pytest.raises(ArtifactDamaged):
        Artifact.load(artifact_folder)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "not the manifest"),
        ("{}", "not the manifest"),
        ("[]", "not the manifest"),
        ('{"format_version": 99}', "99"),
    ],
)
def test_foreign_manifests(artifact_folder: Path, text: str, error: str) -> None:
    """A manifest that is not ours, or of a later format, says so."""
    (artifact_folder / "manifest.json").write_text(text)

    with pytest.raises(ArtifactFormat, match=error):
        Artifact.load(artifact_folder)


def test_a_manifest_cannot_name_other_files(artifact_folder: Path) -> None:
    """A manifest that lists a path outside the artifact is refused before anything is opened."""
    path = artifact_folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../etc/passwd"] = "0"
    path.write_text(json.dumps(manifest))

    with pytest.raises(ArtifactFormat, match="does not know"):
        Artifact.load(artifact_folder)


def test_no_artifact(tmp_path: Path) -> None:
    """A path with nothing, an empty folder and a file that is something else each say what is wrong."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hello")

    with pytest.raises(ArtifactMissing):
        Artifact.load(tmp_path / "nothing")
    with pytest.raises(ArtifactMissing, match=r"manifest\.json"):
        Artifact.load(tmp_path / "empty")
    with pytest.raises(ArtifactFormat):
        Artifact.load(tmp_path / "file")


def test_shapes_must_fit(tmp_path: Path, changed: Callable[..., Draft]) -> None:
    """A manifest that promises another dimension than the centroids have is refused."""
    artifacts.write(tmp_path / "a", changed(dim=17))

    with pytest.raises(ArtifactDamaged, match="K = 4, D = 17"):
        Artifact.load(tmp_path / "a")


def test_centroids_must_be_finite(tmp_path: Path, draft: Draft) -> None:
    """Centroids with a NaN are refused even where every digest is right."""
    draft.centroids[0, 0] = np.nan
    artifacts.write(tmp_path / "a", draft)

    with pytest.raises(ArtifactDamaged, match="finite"):
        Artifact.load(tmp_path / "a")


def test_self_test_notices_another_encoder(artifact: Artifact) -> None:
    """Embeddings that differ from the recorded ones fail the self-test; equal ones give their cosine."""
    recorded = artifact.self_test.embeddings

    assert artifact.self_test.check(recorded) == pytest.approx(1)
    for bad in (recorded[::-1], recorded[:, :3], np.full_like(recorded, np.nan)):
        with pytest.raises(ArtifactSelfTest):
            artifact.self_test.check(bad)


def test_a_tensor_file_of_another_content(artifact_folder: Path, tmp_path: Path, draft: Draft) -> None:
    """A safetensors file that lacks what it should hold is damage, even with a digest that fits."""
    shutil.rmtree(artifact_folder)
    artifacts.write(artifact_folder, draft)
    rewrite(artifact_folder, "centroids.safetensors", "other", np.zeros(3), alone=True)

    with pytest.raises(ArtifactDamaged, match="lacks 'centroids'"):
        Artifact.load(artifact_folder)
