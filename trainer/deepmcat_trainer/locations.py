"""Where an image's bytes are, so that a worker process can read them itself: small, picklable, checked on reading.

Location
├── WholeFile     a file of its own
├── FileSpan      part of a file: a member of a plain tar
├── ZipSpan       a stored or deflated member of a zip, inflated with a bound
├── Held          bytes that somebody had to read in order: a member of a compressed tar
└── Lost          nothing to read, and the reason

Reading never follows a member's name, never runs over a size limit, and raises ImageError and nothing else.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from deepmcat_core.errors import CorruptImage, ImageError, ImageTooLarge

_ZIP_LOCAL = struct.Struct("<4s22xHH")  # APPNOTE.TXT 4.3.7: signature … file name length, extra field length
_ZIP_LOCAL_SIGNATURE = b"PK\x03\x04"


class Unreadable(ImageError):
    """A file or an archive that cannot be read: permissions, a vanished file, an encrypted member."""

    reason = "UNREADABLE"


class CorruptArchive(ImageError):
    """An archive that ends early or does not mean what it says; the images before the damage are used."""

    reason = "CORRUPT_ARCHIVE"


class Location(Protocol):
    """Somewhere to read an image from."""

    @property
    def held(self) -> int:
        """How many bytes of the image are in memory already."""

    def read(self, max_bytes: int) -> bytes:
        """All bytes of the image. Raises ImageTooLarge above `max_bytes`, Unreadable, CorruptImage."""


class _NothingHeld:
    """A location that is read by whoever decodes it."""

    __slots__ = ()

    @property
    def held(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class WholeFile(_NothingHeld):
    """A file of its own."""

    path: str

    def read(self, max_bytes: int) -> bytes:
        """All bytes of the file; only regular files are opened, so that no pipe or device holds up the run."""
        try:
            with Path(self.path).open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise Unreadable("not a regular file")
                _check_size(status.st_size, max_bytes)
                return _read_at_most(file, max_bytes)
        except (OSError, ValueError) as error:  # ValueError: a NUL in a list's line
            raise Unreadable("the file cannot be read") from error


@dataclass(frozen=True, slots=True)
class FileSpan(_NothingHeld):
    """`length` bytes from `offset` on."""

    path: str
    offset: int
    length: int

    def read(self, max_bytes: int) -> bytes:
        """The bytes of the span. Raises CorruptImage where the file ends before it."""
        _check_size(self.length, max_bytes)
        return _read_span(self.path, self.offset, self.length)


@dataclass(frozen=True, slots=True)
class ZipSpan(_NothingHeld):
    """A member of a zip. header: offset of its local header. packed, length: bytes in the archive and inflated."""

    path: str
    header: int
    packed: int
    length: int
    crc: int
    deflated: bool

    def read(self, max_bytes: int) -> bytes:
        """The member's bytes, their checksum verified. Raises CorruptImage where anything does not fit."""
        _check_size(max(self.length, self.packed), max_bytes)
        signature, name, extra = _ZIP_LOCAL.unpack(_read_span(self.path, self.header, _ZIP_LOCAL.size))
        if signature != _ZIP_LOCAL_SIGNATURE:
            raise CorruptImage("the archive has no member where its table of contents says")
        data = _read_span(self.path, self.header + _ZIP_LOCAL.size + name + extra, self.packed)
        if self.deflated:
            data = _inflate(data, self.length)
        if len(data) != self.length or zlib.crc32(data) != self.crc:
            raise CorruptImage("the archive's member does not have the size and checksum it should have")
        return data


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that were read already."""

    data: bytes

    @property
    def held(self) -> int:
        """All of them."""
        return len(self.data)

    def read(self, max_bytes: int) -> bytes:
        """The bytes."""
        _check_size(len(self.data), max_bytes)
        return self.data


@dataclass(frozen=True, slots=True)
class Lost(_NothingHeld):
    """Nothing to read. error: the class of the ImageError that says why."""

    error: type[ImageError]

    def read(self, max_bytes: int) -> bytes:
        """Raise the error."""
        raise self.error("there is nothing to read here")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageTooLarge(f"the file has {size} bytes; at most {max_bytes} are read")


def _read_at_most(file: BinaryIO, max_bytes: int) -> bytes:
    """All of a file that may grow while it is read."""
    data = file.read(max_bytes + 1)
    _check_size(len(data), max_bytes)
    return data


def _read_span(path: str, offset: int, length: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise Unreadable("the archive cannot be read") from error
    if len(data) != length:
        raise CorruptImage("the archive ends before its member does")
    return data


def _inflate(data: bytes, length: int) -> bytes:
    """Inflate to at most one byte more than `length`, which is enough to see that it is wrong."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length + 1)
    except zlib.error as error:
        raise CorruptImage("the archive's member cannot be inflated") from error
