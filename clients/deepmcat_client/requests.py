"""What a caller asks: an image from somewhere, and how it is to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepmcat_client.errors import CorruptImage, ImageTooLarge, UnreadableFile


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPlane:
    """A monochrome plane without a file around it: rows × columns little-endian samples, row by row.

    inverted: MONOCHROME1, the lowest value is white.
    """

    rows: int
    columns: int
    sample_type: Literal["uint8", "uint16", "int16", "float32"]
    data: bytes
    inverted: bool = False


Source = bytes | Path | RawPlane
"""An image: the bytes of a file, a file on this machine, or a plane of pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to answer; 0 and "" leave it to the artifact and the server.

    frames: how many frames of a multi-frame image to use. top_k: how many candidates. want_embedding: embeddings
    identify patients. artifact_id: the artifact that must answer, else ArtifactNotFound.
    """

    frames: int = 0
    top_k: int = 0
    want_embedding: bool = False
    artifact_id: str = ""


def load(source: Source, max_bytes: int) -> bytes | RawPlane:
    """The image's content, read from its file where it is one. Raises ImageTooLarge, CorruptImage, UnreadableFile.

    A file without a byte is corrupt here as it is for the library; a server would call it no request at all.
    """
    content = _read(source, max_bytes) if isinstance(source, Path) else source
    size = len(content) if isinstance(content, bytes) else len(content.data)
    if size > max_bytes:
        raise ImageTooLarge(_too_large(size, max_bytes))
    if content == b"":
        raise CorruptImage("the image has no bytes")
    return content


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ImageTooLarge(_too_large(size, max_bytes))
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"the file cannot be read: {error.strerror or type(error).__name__}") from error


def _too_large(size: int, max_bytes: int) -> str:
    return f"the image has {size} bytes; this client sends at most {max_bytes} (Client(max_image_bytes=…))"
