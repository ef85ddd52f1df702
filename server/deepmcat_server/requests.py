"""From the wire to the core: a request, checked and read once.

Reading a `bytes` field of a message copies it, so each is read in one place and handed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.errors import ImageTooLarge
from deepmcat_core.frame import ImageSource, Limits, RawPlane
from deepmcat_server.errors import InvalidRequest

MAX_ITEM_ID_BYTES = 64

SampleType = Literal["uint8", "uint16", "int16", "float32"]

SAMPLES: dict[int, tuple[SampleType, int]] = {
    pb.SAMPLE_TYPE_UINT8: ("uint8", 1),
    pb.SAMPLE_TYPE_UINT16: ("uint16", 2),
    pb.SAMPLE_TYPE_INT16: ("int16", 2),
    pb.SAMPLE_TYPE_FLOAT32: ("float32", 4),
}
"""The wire's sample types: the core's name, bytes a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """Content that follows in chunks."""

    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image to answer. frames, top_k: 0 for the default. timeout_ms: 0 for the server's default.

    artifact: the id or name of the one that must answer; empty: the default.
    """

    item_id: str
    content: ImageSource | Announced
    frames: int
    top_k: int
    want_embedding: bool
    timeout_ms: int
    artifact: str

    @property
    def size_bytes(self) -> int:
        """The size of the content."""
        match self.content:
            case Announced(size_bytes=size_bytes):
                return size_bytes
            case RawPlane(data=data):
                return len(data)
            case content:
                return len(content)


def read_item(request: pb.CategorizeRequest, *, limits: Limits) -> Item:
    """The item of a request. Raises InvalidRequest, ImageTooLarge."""
    options = request.options
    length = len(request.item_id.encode())
    if length > MAX_ITEM_ID_BYTES:
        raise InvalidRequest(f"item_id has {length} bytes; at most {MAX_ITEM_ID_BYTES} are allowed", "item_id")
    if options.frames > limits.max_frames:
        raise InvalidRequest(
            f"frames is {options.frames}; 0 (the artifact's policy) to {limits.max_frames} is allowed", "options.frames"
        )
    return Item(
        item_id=request.item_id,
        content=_content(request.image, limits),
        frames=options.frames,
        top_k=options.top_k,
        want_embedding=options.want_embedding,
        timeout_ms=options.timeout_ms,
        artifact=options.artifact_id,
    )


def _content(image: pb.Image, limits: Limits) -> ImageSource | Announced:
    match image.WhichOneof("content"):
        case "encoded":
            return _bounded(image.encoded, limits)
        case "raw":
            return _raw(image.raw, limits)
        case "chunked":
            return _announced(image.chunked.size_bytes, limits)
        case _:
            raise InvalidRequest("the request has no image: set encoded, raw or (in a stream) chunked", "image")


def _bounded(content: bytes, limits: Limits) -> bytes:
    if not content:
        raise InvalidRequest("the image has 0 bytes", "image.encoded")
    _check_size(len(content), limits)
    return content


def _announced(size_bytes: int, limits: Limits) -> Announced:
    if size_bytes == 0:
        raise InvalidRequest("size_bytes is 0; the size of the whole file is needed", "image.chunked.size_bytes")
    _check_size(size_bytes, limits)
    return Announced(size_bytes=size_bytes)


def _check_size(size_bytes: int, limits: Limits) -> None:
    if size_bytes > limits.max_bytes:
        raise ImageTooLarge(f"the image has {size_bytes} bytes; this server takes at most {limits.max_bytes}")


def _raw(plane: pb.RawPlane, limits: Limits) -> RawPlane:
    for name, side in (("rows", plane.rows), ("columns", plane.columns)):
        if side == 0:
            raise InvalidRequest(f"{name} is 0; 1 to {limits.max_side} is allowed", f"image.raw.{name}")
        if side > limits.max_side:
            raise ImageTooLarge(f"the image has {side} {name}; this server takes at most {limits.max_side}")
    if plane.sample_type not in SAMPLES:
        raise InvalidRequest("sample_type is not given, or not one that this server knows", "image.raw.sample_type")
    sample_type, sample_bytes = SAMPLES[plane.sample_type]
    data, expected = plane.data, plane.rows * plane.columns * sample_bytes
    if len(data) != expected:
        raise InvalidRequest(
            f"data has {len(data)} bytes; {plane.rows} rows of {plane.columns} {sample_type} samples have {expected}",
            "image.raw.data",
        )
    return RawPlane(
        rows=plane.rows,
        columns=plane.columns,
        sample_type=sample_type,
        data=data,
        inverted=plane.photometric_interpretation == pb.PHOTOMETRIC_INTERPRETATION_MONOCHROME1,
    )
