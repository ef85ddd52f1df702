"""An artifact as one file: an uncompressed tar of its folder."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import weakref
from pathlib import Path

from deepmcat_core.durable import sync_directory
from deepmcat_core.errors import ArtifactFormat


class Unpacked:
    """A packed artifact's temporary copy, removed with the last reference to it or at exit."""

    def __init__(self, path: Path, members: re.Pattern[str]) -> None:
        """Unpack `path`, whose members are called like `members`. Raises ArtifactFormat where it is something else."""
        self._members = members
        self.folder = Path(tempfile.mkdtemp(prefix="deepmcat-artifact-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        try:
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    self._take(tar, member)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise ArtifactFormat(f"{path} is neither an artifact directory nor a packed artifact") from error

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Copy one member out: a file of an artifact under its own name, and nothing else that a tar can hold."""
        content = tar.extractfile(member) if member.isreg() and self._members.fullmatch(member.name) else None
        if content is None:
            raise ArtifactFormat("the packed artifact holds something that is not a file of an artifact")
        target = self.folder / member.name
        target.parent.mkdir(exist_ok=True)
        with target.open("xb") as file:
            shutil.copyfileobj(content, file)


def member(path: Path, name: str) -> bytes:
    """The content of one file of a packed artifact. Raises ArtifactFormat where there is none."""
    try:
        with tarfile.open(path, mode="r:") as tar:
            content = tar.extractfile(name)
            return content.read() if content is not None else b""
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ArtifactFormat(f"{path} is neither an artifact directory nor a packed artifact") from error


def pack(folder: Path, target: Path) -> None:
    """Write `folder` as a tar with sorted names and no times or owners, so that equal content gives an equal file."""
    temporary = target.with_name(f".{target.name}.partial")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for item in sorted(p for p in folder.rglob("[!.]*") if p.is_file()):  # not what is being written
                info = tarfile.TarInfo(item.relative_to(folder).as_posix())
                info.size = item.stat().st_size
                with item.open("rb") as content:
                    tar.addfile(info, content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    sync_directory(target.parent)
