"""What a person names as SOURCE, as one lazy sequence of items in an order that never changes.

SOURCE
├── folder        recursive, each directory sorted by name, hidden files left out; archives in it are opened
├── archive       .tar .tar.gz .tgz .tar.bz2 .tar.xz .zip
├── @list, *.txt  one path a line: files, folders, archives; relative to the list's own folder
└── file          a single image

Nothing holds more than the names of the directories on the way down, so ten million files take no more memory than
ten. Problems with a single path become items without bytes: they are reported and never end the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deepmcat_core.errors import ConfigError
from deepmcat_core.frame import Limits
from deepmcat_trainer import archives, dataset
from deepmcat_trainer.locations import Location, Lost, Unreadable, WholeFile

LIST_SUFFIX = ".txt"
TAKEN = "SOURCE is a folder, a tar or zip archive, an @list or .txt file of paths, or an image"
_Identity = tuple[int, int]  # device and inode of a directory


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceItem:
    """One file or archive member that may be an image.

    locator: source name / path within the source [/ member]: the same wherever the source lies, the base of the id.
    relative: the locator without the source's name. path: absolute path of the file, or of the archive around it.
    member: name within the archive, "" for a file. folder: name of the folder around it, "" where there is none.
    """

    locator: str
    relative: str
    path: str
    member: str
    folder: str
    location: Location

    @property
    def absolute(self) -> str:
        """Path and member as one text."""
        return f"{self.path}/{self.member}" if self.member else self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """How to walk. skip: absolute paths that are not sources. contents: False to count without reading bytes."""

    max_bytes: int = Limits().max_bytes
    skip: frozenset[str] = frozenset()
    contents: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A SOURCE that exists. name: unique among the sources of a run."""

    name: str
    path: Path
    is_list: bool

    def items(self, walk: Walk) -> Iterator[SourceItem]:
        """Everything in the source that may be an image, lazily, in a fixed order."""
        if self.is_list:
            yield from self._listed(walk)
        elif self.path.is_dir():
            yield from self._below(self.path, "", walk)
        else:
            yield from self._file(self.path, "" if archives.is_archive(self.path) else self.path.name, walk)

    def _listed(self, walk: Walk) -> Iterator[SourceItem]:
        with self.path.open(encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                text = line.rstrip("\r\n")
                if text.strip():
                    path = absolute(self.path.parent / text)
                    yield from self._below(path, text, walk) if path.is_dir() else self._file(path, text, walk)

    def _below(self, folder: Path, relative: str, walk: Walk) -> Iterator[SourceItem]:
        for path, readable in walk_files(folder, walk.skip):
            inner = PurePosixPath(relative, path.relative_to(folder)).as_posix()
            if readable:
                yield from self._file(path, inner, walk)
            else:
                yield self._item(path, inner, "", Lost(Unreadable))

    def _file(self, path: Path, relative: str, walk: Walk) -> Iterator[SourceItem]:
        if not archives.is_archive(path):
            yield self._item(path, relative, "", WholeFile(str(path)))
            return
        for member, location in archives.members(path, max_bytes=walk.max_bytes, contents=walk.contents):
            yield self._item(path, relative, member, location)

    def _item(self, path: Path, relative: str, member: str, location: Location) -> SourceItem:
        inner = "/".join(part for part in (relative, member) if part)
        around = PurePosixPath(member).parent.name if member else path.parent.name
        return SourceItem(
            locator=f"{self.name}/{inner}",
            relative=inner,
            path=str(path),
            member=member,
            folder=around,
            location=location,
        )


def open_sources(arguments: Sequence[str]) -> tuple[Source, ...]:
    """The sources that the arguments name. Raises ConfigError for a path that is not there."""
    taken: dict[str, int] = {}
    sources = []
    for argument in arguments:
        path = absolute(argument.removeprefix("@"))
        if not path.exists():
            raise ConfigError(f"there is nothing at {argument}; {TAKEN}")
        is_list = path.is_file() and (argument.startswith("@") or path.suffix.lower() == LIST_SUFFIX)
        taken[path.name] = taken.get(path.name, 0) + 1
        name = path.name if taken[path.name] == 1 else f"{path.name}~{taken[path.name]}"
        sources.append(Source(name=name, path=path, is_list=is_list))
    return tuple(sources)


def absolute(path: Path | str) -> Path:
    """The path from the root on, without `.` and `..`; links keep the names that people gave them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


def items(sources: Sequence[Source], walk: Walk) -> Iterator[SourceItem]:
    """The items of all sources, one source after the other."""
    for source in sources:
        yield from source.items(walk)


def walk_files(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[tuple[Path, bool]]:
    """(file, True) of every regular file below `root`, depth first and sorted, and (path, False) of what is unreadable.

    Symbolic links are followed. A directory is not entered from within itself, and through links only once. Pipes,
    sockets and devices are passed over.
    """
    linked: set[_Identity] = set()
    stack = [_Directory(root)]
    while stack:
        directory = stack[-1]
        if directory.unreadable or (path := next(directory.entries, None)) is None:
            stack.pop()
            if directory.unreadable:
                yield directory.path, False
            continue
        status = _status(path)
        if str(path) in skip:
            continue
        if status is None:
            yield path, False
        elif stat.S_ISREG(status.st_mode):
            yield path, True
        elif stat.S_ISDIR(status.st_mode) and _may_enter(path, status, stack, linked):
            stack.append(_Directory(path))


class _Directory:
    """A directory on the way down, and what of it is still to visit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: Iterator[Path] = iter(())
        status = _status(path)
        self.identity = _identity(status) if status else None
        names = _visible_names(path)
        self.unreadable = status is None or names is None
        if names and not {dataset.INFO, dataset.IMAGES} <= set(names):  # a prepared dataset is nobody's source
            self.entries = (path / name for name in names)


def _visible_names(folder: Path) -> list[str] | None:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return None


def _may_enter(path: Path, status: os.stat_result, stack: Sequence[_Directory], linked: set[_Identity]) -> bool:
    identity = _identity(status)
    if any(directory.identity == identity for directory in stack):
        return False
    if path.is_symlink():
        if identity in linked:
            return False
        linked.add(identity)
    return True


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _status(path: Path) -> os.stat_result | None:
    """What the path leads to, None where that cannot be told: a broken link, a vanished file, no permission."""
    try:
        return path.stat()
    except OSError:
        return None
