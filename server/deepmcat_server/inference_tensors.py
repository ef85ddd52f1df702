"""The tensors of the Open Inference Protocol: images in, answers out.

    image BYTES [n]          whole files, as our own service takes them
    plane UINT8 [n, S, S]    preprocessed, as `deepmcat prepare` makes them: one of both
                                  ▼
    embedding FP32 [n, D]   cluster INT64 [n]   category_id, category BYTES [n]
    distance FP32 [n]   p_value FP64 [n], NaN without a verdict   outlier BOOL [n], false without one

On the wire a tensor is bytes in `raw_input_contents`, row by row and little-endian, each element of BYTES behind its
length in four bytes (Triton's binary tensor data extension); or it is in the typed fields of `contents`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as oip

from deepmcat_core.assigner import Assignment
from deepmcat_core.errors import ImageTooLarge
from deepmcat_server.errors import InvalidRequest

IMAGE, PLANE = "image", "plane"
DATA_TYPES = {IMAGE: "BYTES", PLANE: "UINT8"}
OUTPUTS = {
    "embedding": "FP32",
    "cluster": "INT64",
    "category_id": "BYTES",
    "category": "BYTES",
    "distance": "FP32",
    "p_value": "FP64",
    "outlier": "BOOL",
}
"""The outputs and their data types, in the order in which they come where none is asked for by name."""

SHARED_MEMORY = "shared_memory_region"
LENGTH = struct.Struct("<I")

Planes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request, checked. images: files, or planes (n, S, S). timeout_s: infinite where none is given."""

    request_id: str
    images: list[bytes] | Planes
    outputs: tuple[str, ...]
    timeout_s: float
    wants_final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one image is, and of which catalog version the name is. embedding: (D,)."""

    assignment: Assignment
    embedding: Floats
    catalog_version: int


def read_request(request: oip.ModelInferRequest, *, size: int, max_images: int, max_image_bytes: int) -> Wanted:
    """What a request asks for. size: S of the artifact. Raises InvalidRequest, ImageTooLarge."""
    names = [tensor.name for tensor in request.inputs]
    if len(names) != 1 or names[0] not in DATA_TYPES:
        raise InvalidRequest(f"the request has {len(names)} inputs; one is needed, {IMAGE} or {PLANE}", "inputs")
    tensor = request.inputs[0]
    _check_tensor(tensor, size, max_images)
    content = _content(request, tensor)
    if tensor.name == PLANE:
        images: list[bytes] | Planes = _planes(content, tensor.shape)
    else:
        images = _files(content, tensor.shape[0], max_image_bytes)
    return Wanted(
        request_id=request.id,
        images=images,
        outputs=_outputs(request),
        timeout_s=_timeout_s(request),
        wants_final=_parameter(request, "triton_enable_empty_final_response", "bool_param") is True,
    )


def write_response(wanted: Wanted, answers: Sequence[Answer], *, model: str, version: str) -> oip.ModelInferResponse:
    """The answers to a request, as tensors with those outputs that it wants."""
    response = oip.ModelInferResponse(model_name=model, model_version=version, id=wanted.request_id)
    # The oldest: where a catalog changed meanwhile, some of the names are of that one.
    response.parameters["catalog_version"].int64_param = min(answer.catalog_version for answer in answers)
    for name in wanted.outputs:
        shape = [len(answers), len(answers[0].embedding)] if name == "embedding" else [len(answers)]
        response.outputs.add(name=name, datatype=OUTPUTS[name], shape=shape)
        response.raw_output_contents.append(_column(name, answers))
    return response


def _check_tensor(tensor: oip.ModelInferRequest.InferInputTensor, size: int, max_images: int) -> None:
    name, shape = tensor.name, list(tensor.shape)
    if SHARED_MEMORY in tensor.parameters:
        raise InvalidRequest("this server shares no memory with its callers; send the tensor in the request", "inputs")
    if tensor.datatype != DATA_TYPES[name]:
        raise InvalidRequest(f"the input {name} has another data type than {DATA_TYPES[name]}", "inputs.datatype")
    rest = [size, size] if name == PLANE else []
    if shape[1:] != rest or not shape:
        needed = ", ".join(["n", *map(str, rest)])
        raise InvalidRequest(f"the input {name} has shape {shape}; [{needed}] is needed", "inputs.shape")
    if not 1 <= shape[0] <= max_images:
        raise InvalidRequest(f"the request has {shape[0]} images; 1 to {max_images} are allowed", "inputs.shape")


def _content(request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor) -> bytes | list[bytes]:
    """The tensor's bytes, or its elements where it came in the typed fields."""
    raw, typed = request.raw_input_contents, tensor.HasField("contents")
    if len(raw) + typed != 1:
        raise InvalidRequest(
            f"the content of one input came {len(raw) + typed} times; "
            "once is needed, in raw_input_contents or in the input's contents",
            "raw_input_contents",
        )
    if raw:
        return bytes(raw[0])
    if tensor.name == IMAGE:
        return list(tensor.contents.bytes_contents)
    try:
        return bytes(tensor.contents.uint_contents)
    except ValueError as error:
        raise InvalidRequest("a value of the input plane is over 255", "inputs.contents") from error


def _planes(content: bytes | list[bytes], shape: Sequence[int]) -> Planes:
    assert isinstance(content, bytes)
    if len(content) != math.prod(shape):
        raise InvalidRequest(
            f"the input plane has {len(content)} values; its shape {list(shape)} has {math.prod(shape)}", "inputs"
        )
    return np.frombuffer(content, np.uint8).reshape(*shape)


def _files(content: bytes | list[bytes], count: int, max_image_bytes: int) -> list[bytes]:
    files = list(_elements(content, count)) if isinstance(content, bytes) else content
    if len(files) != count:
        raise InvalidRequest(f"the input image has {len(files)} elements; its shape has {count}", "inputs")
    for i, file in enumerate(files):
        if not file:
            raise InvalidRequest(f"image[{i}] has 0 bytes", "inputs")
        if len(file) > max_image_bytes:
            raise ImageTooLarge(f"image[{i}] has {len(file)} bytes; this server takes at most {max_image_bytes}")
    return files


def _elements(content: bytes, count: int) -> Iterator[bytes]:
    """The elements of a BYTES tensor. Raises InvalidRequest where it does not have as many, and nothing else."""
    start = 0
    for i in range(count):
        end = start + LENGTH.size
        if end <= len(content):
            start, end = end, end + LENGTH.unpack_from(content, start)[0]
        if end > len(content):
            raise InvalidRequest(f"the input image ends within image[{i}]; its shape has {count} of them", "inputs")
        yield content[start:end]
        start = end
    if start != len(content):
        raise InvalidRequest(f"the input image has {len(content) - start} bytes after the last element", "inputs")


def _outputs(request: oip.ModelInferRequest) -> tuple[str, ...]:
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequest(f"an output is asked for that there is not; there are {', '.join(OUTPUTS)}", "outputs")
        if SHARED_MEMORY in output.parameters or "classification" in output.parameters:
            raise InvalidRequest("outputs come as they are, in the response: no shared memory, no classes", "outputs")
    return tuple(output.name for output in request.outputs) or tuple(OUTPUTS)


def _timeout_s(request: oip.ModelInferRequest) -> float:
    """Triton's parameter `timeout` is in microseconds; 0 is none."""
    for kind in ("int64_param", "uint64_param"):
        timeout_us = _parameter(request, "timeout", kind)
        if isinstance(timeout_us, int) and timeout_us > 0:
            return timeout_us / 1e6
    return math.inf


def _parameter(request: oip.ModelInferRequest, name: str, kind: str) -> object:
    """A parameter of a kind; None where there is none."""
    if name not in request.parameters or request.parameters[name].WhichOneof("parameter_choice") != kind:
        return None
    value: object = getattr(request.parameters[name], kind)
    return value


def _column(name: str, answers: Sequence[Answer]) -> bytes:
    """One output of all images."""
    found = [answer.assignment for answer in answers]
    match name:
        case "embedding":
            return np.stack([answer.embedding for answer in answers]).astype("<f4").tobytes()
        case "cluster":
            return np.array([a.cluster_id for a in found], "<i8").tobytes()
        case "category_id":
            return _texts(a.category_id for a in found)
        case "category":
            return _texts(a.category for a in found)
        case "distance":
            return np.array([a.distance for a in found], "<f4").tobytes()
        case "p_value":
            return np.array([math.nan if a.p_value is None else a.p_value for a in found], "<f8").tobytes()
        case _:
            return np.array([bool(a.outlier) for a in found]).tobytes()


def _texts(texts: Iterator[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (LENGTH.pack(len(text)), text))
