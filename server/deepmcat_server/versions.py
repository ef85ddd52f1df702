"""What lies at a path that is served from, told by names, sizes and times alone: cheap enough to ask every second.

    PATH             an artifact: a directory with a manifest, or a packed file
    PATH             a symbolic link to one: where it leads now
    PATH/VERSION     a folder of artifacts: its versions, directories or packed files (.tar); the last in natural
                     order is the newest, v10 after v9 and 2026-11-23 after 2026-09-30

Names that begin with a dot are on their way: `train` and packing write under such a name, and rename.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepmcat_core.artifact import CATALOG, MANIFEST

PACKED_SUFFIX = ".tar"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

FileState = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An artifact on disk, not read. version: its name in a folder of versions, else empty. path: without links.

    files: name, inode, bytes and nanoseconds of each of its files but the catalog, which tell it from any other that
    comes to lie there.
    """

    version: str
    path: Path
    files: tuple[FileState, ...]

    @property
    def size_bytes(self) -> int:
        """Of the files together: about what it takes of memory once it is loaded."""
        return sum(size_bytes for _, _, size_bytes, _ in self.files)


def versions(path: Path) -> tuple[Found, ...]:
    """The artifacts at `path`, oldest first; none where there is nothing. Raises no OSError: disks come and go."""
    if _is_file(path / MANIFEST) or _is_file(path):
        return tuple(_found(path, ""))
    names = sorted(filter(_NAME.fullmatch, _names(path)), key=_natural)
    return tuple(found for name in names if _is_version(path / name) for found in _found(path / name, name))


def newest(path: Path) -> Found | None:
    """The artifact that `path` stands for."""
    return next(reversed(versions(path)), None)


def unchanged(found: Found) -> bool:
    """Whether what was found lies there still, so that what has been read of it belongs together."""
    return _states(found.path) == found.files


def _is_version(path: Path) -> bool:
    return _is_file(path / MANIFEST) or (path.suffix == PACKED_SUFFIX and _is_file(path))


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises where a folder may not be entered


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208  # names are all that is needed
    except OSError:
        return []


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers compare as numbers. The text of equal ones (1, 01) counts too, so no two are equal."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if part.isdigit() else 0, part) for part in parts]


def _found(path: Path, version: str) -> Iterator[Found]:
    """One, or none where it goes away while it is looked at."""
    real = Path(os.path.realpath(path))
    if files := _states(real):
        yield Found(version=version, path=real, files=files)


def _states(path: Path) -> tuple[FileState, ...]:
    try:
        return tuple(sorted(_walk(path, "")))
    except OSError:
        return ()


def _walk(path: Path, name: str) -> Iterator[FileState]:
    if not path.is_dir():
        stat = path.stat()
        yield name, stat.st_ino, stat.st_size, stat.st_mtime_ns
        return
    for child in path.iterdir():
        if not child.name.startswith(".") and (name or child.name != CATALOG):
            yield from _walk(child, f"{name}/{child.name}")
