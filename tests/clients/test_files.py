"""Which files a person means."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from deepmcat_client.errors import InvalidRequest
from deepmcat_client.files import find_files


def test_folders_are_walked_in_a_fixed_order(tmp_path: Path) -> None:
    """Files first, then folders, each sorted; hidden ones and what is no regular file are left out."""
    for name in ("b", "a", "d/c", ".hidden", ".git/x", "c/z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")

    assert [str(p.relative_to(tmp_path)) for p in find_files([tmp_path])] == ["a", "b", "c/z", "d/c"]


def test_a_file_that_is_named_is_meant(tmp_path: Path) -> None:
    """Hidden or not, and twice where it is named twice."""
    hidden = tmp_path / ".image"
    hidden.write_bytes(b"")

    assert list(find_files([hidden, hidden])) == [hidden, hidden]


def test_a_path_that_is_not_there_is_told_before_anything_is_done(tmp_path: Path) -> None:
    """Not after a million images."""
    with pytest.raises(InvalidRequest, match="there is no file or folder"):
        find_files([tmp_path, tmp_path / "gone"])


def test_files_are_found_as_they_are_asked_for(tmp_path: Path) -> None:
    """The first files of an archive come without a list of them all: a folder that comes later can still change."""
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "later").mkdir()
    files = find_files([tmp_path])

    assert list(islice(files, 1)) == [tmp_path / "a"]
    (tmp_path / "later" / "b").write_bytes(b"")
    assert list(files) == [tmp_path / "later" / "b"]
