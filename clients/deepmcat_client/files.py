"""The files that a person means with the paths they gave."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepmcat_client.errors import InvalidRequest


def find_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Every file named, and every regular file in every folder named; lazily, sorted within a folder.

    Hidden files in folders are left out, and links to folders are not followed. Raises InvalidRequest, before
    anything else, for a path that is not there.
    """
    for path in paths:
        if not path.exists():
            raise InvalidRequest(f"there is no file or folder {path}")
    return (file for path in paths for file in (_walk(path) if path.is_dir() else [path]))


def _walk(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if not name.startswith(".") and _is_regular(path):
                yield path


def _is_regular(path: Path) -> bool:
    """Whether it is a file with an end: no pipe, no device. What has vanished meanwhile is not."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
