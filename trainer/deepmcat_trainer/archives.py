"""Members of tar and zip archives, one after the other, without writing any of them to disk.

A member's name is a label and nothing more: it is never opened, joined to a folder or created. Members of plain tars
and of ordinary zips are located, so that workers read them; members of compressed tars can only be read in order, so
the parent reads them. A zip's table of contents is held in memory (about half a kilobyte a member); a tar has none.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Self

from deepmcat_trainer.locations import CorruptArchive, FileSpan, Held, Location, Lost, Unreadable, ZipSpan

_PLAIN_TAR = (".tar",)
_PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ZIP = (".zip",)
_ENCRYPTED = 0x1  # APPNOTE.TXT 4.4.4, general purpose bit 0
_DAMAGED_HEADER = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)

Member = tuple[str, Location]
"""A member's name with forward slashes, and where its bytes are. The name "" stands for the archive's own failure."""


def is_archive(path: Path) -> bool:
    """Whether `path` is read as an archive; its name's ending decides."""
    return path.name.lower().endswith((*_PLAIN_TAR, *_PACKED_TAR, *_ZIP))


def members(path: Path, *, max_bytes: int, contents: bool = True) -> Iterator[Member]:
    """The regular members of an archive, hidden ones left out, in the order of the archive.

    contents: False to count only, which leaves bytes unread. Damage ends the archive with one Lost member.
    """
    name = path.name.lower()
    try:
        if name.endswith(_ZIP):
            yield from _zip_members(path, max_bytes, contents)
        elif name.endswith(_PLAIN_TAR):
            yield from _tar_members(path)
        else:
            yield from _packed_tar_members(path, max_bytes, contents)
    except _DAMAGE:
        yield "", Lost(CorruptArchive)
    except OSError as error:
        # gzip tells of damage by an OSError without an errno
        yield "", Lost(Unreadable if error.errno else CorruptArchive)


def hidden(name: str) -> bool:
    """Whether a part of the name begins with a dot, or is what macOS adds to zips."""
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in PurePosixPath(name).parts)


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header behind the first for the end of the archive; the images behind it would be lost
    without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header. Raises ReadError where it is damaged."""
        try:
            return super().fromtarfile(archive)
        except _DAMAGED_HEADER as error:
            raise tarfile.ReadError("a header of the archive is damaged") from error


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:", tarinfo=_StrictTarInfo) as archive:
        for member in _tar_headers(archive):
            # A sparse member's bytes are not one span; images are never stored so
            span = FileSpan(str(path), member.offset_data, member.size)
            yield member.name, Lost(Unreadable) if member.issparse() else span


def _packed_tar_members(path: Path, max_bytes: int, contents: bool) -> Iterator[Member]:
    with tarfile.open(path, "r|*", tarinfo=_StrictTarInfo) as archive:
        for member in _tar_headers(archive):
            file = archive.extractfile(member) if contents and not member.issparse() else None
            yield member.name, Held(file.read(max_bytes + 1)) if file else Lost(Unreadable)


def _tar_headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member; ten million do not fit
        if member.isreg() and not hidden(member.name):
            yield member


def _zip_members(path: Path, max_bytes: int, contents: bool) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and not hidden(member.filename):
                yield member.filename, _zip_location(archive, member, max_bytes, contents)


def _zip_location(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int, contents: bool) -> Location:
    if member.flag_bits & _ENCRYPTED or not contents:
        return Lost(Unreadable)
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return ZipSpan(
            path=str(archive.filename),
            header=member.header_offset,
            packed=member.compress_size,
            length=member.file_size,
            crc=member.CRC,
            deflated=member.compress_type == zipfile.ZIP_DEFLATED,
        )
    return _read_zip_member(archive, member, max_bytes)


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> Location:
    try:
        with archive.open(member) as file:
            return Held(file.read(max_bytes + 1))
    except _DAMAGE:
        return Lost(CorruptArchive)
