"""What a path that is served from stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deepmcat_server.versions import newest, unchanged, versions


@pytest.fixture(name="folder")
def folder_fixture(artifact_folder: Path, tmp_path: Path) -> Path:
    """A folder of versions, and of what is none."""
    folder = tmp_path / "versions"
    folder.mkdir()
    for name in ("v9", "v10", "v2", ".v99", "v 11"):
        shutil.copytree(artifact_folder, folder / name)
    (folder / "lost+found").mkdir()
    (folder / "z").mkdir()
    (folder / "zz.txt").write_text("notes")
    (folder / "v8.tar").write_bytes(b"packed, perhaps")
    return folder


def test_versions_are_in_natural_order(folder: Path):
    """v10 comes after v9; names with a dot first or with spaces, other files and empty folders are no versions."""
    assert [found.version for found in versions(folder)] == ["v2", "v8.tar", "v9", "v10"]


def test_an_artifact_stands_for_itself(artifact_folder: Path, tmp_path: Path):
    """A directory is its one version, a link is what it leads to, and nothing stands for nothing."""
    link = tmp_path / "link"
    link.symlink_to(artifact_folder)
    direct, linked = newest(artifact_folder), newest(link)

    assert direct == linked
    assert direct is not None
    assert (direct.version, direct.path) == ("", artifact_folder.resolve())
    assert direct.size_bytes == sum(
        path.stat().st_size for path in artifact_folder.rglob("*") if path.is_file() and path.parent.name != "catalog"
    )
    assert newest(tmp_path / "nowhere") is None
    assert newest(tmp_path) is not None  # a folder of one version


@pytest.mark.parametrize("change", ["content", "replaced", "removed"])
def test_every_change_but_a_name_is_noticed(artifact_folder: Path, change: str):
    """A file that is written to, replaced or removed makes another artifact of it; a catalog version does not."""
    found, file = newest(artifact_folder), artifact_folder / "tree.json"
    assert found is not None
    (artifact_folder / "catalog" / "000002.json").write_text("{}")
    named = unchanged(found)
    match change:
        case "content":
            file.write_text(file.read_text() + " ")
        case "replaced":
            copy = file.with_suffix(".copy")
            shutil.copy2(file, copy)
            copy.replace(file)
        case "removed":
            file.unlink()

    assert named
    assert not unchanged(found)
    assert newest(artifact_folder) != found
