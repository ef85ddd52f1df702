"""What the Open Inference Protocol is told of the artifacts: one model, whose versions are the loaded artifacts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as oip

from deepmcat_server.inference_tensors import DATA_TYPES, IMAGE, OUTPUTS
from deepmcat_server.lines import Line

MODEL = "deepmcat"
PLATFORM = "deepmcat"

_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def metadata(line: Line, versions: Iterable[str]) -> oip.ModelMetadataResponse:
    """The tensors of a version, and which versions there are."""
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=MODEL,
        versions=versions,
        platform=PLATFORM,
        inputs=[tensor(name=n, datatype=kind, shape=_input_shape(n, line)) for n, kind in DATA_TYPES.items()],
        outputs=[tensor(name=n, datatype=kind, shape=_output_shape(n, line)) for n, kind in OUTPUTS.items()],
    )


def config(line: Line) -> oip.ModelConfigResponse:
    """The same as Triton configures it. max_batch_size is 0 because shapes are whole, the n images included."""
    described = model_config_pb2.ModelConfig(name=MODEL, platform=PLATFORM, backend=PLATFORM)
    for name, kind in DATA_TYPES.items():
        described.input.add(name=name, data_type=_config_type(kind), dims=_input_shape(name, line), optional=True)
    for name, kind in OUTPUTS.items():
        described.output.add(name=name, data_type=_config_type(kind), dims=_output_shape(name, line))
    for key, value in {
        "artifact_id": line.artifact_id,
        "catalog_version": str(line.categorizer.catalog.version),
        "engine": line.categorizer.engine.name,
        "device": line.categorizer.engine.device,
        "precision": line.categorizer.engine.precision,
    }.items():
        described.parameters[key].string_value = value
    return oip.ModelConfigResponse(config=described)


def _input_shape(name: str, line: Line) -> list[int]:
    size = line.categorizer.artifact.manifest.preprocessing.size
    return [-1] if name == IMAGE else [-1, size, size]


def _output_shape(name: str, line: Line) -> list[int]:
    return [-1, line.categorizer.artifact.manifest.dim] if name == "embedding" else [-1]


def _config_type(data_type: str) -> int:
    value: int = model_config_pb2.DataType.Value(_CONFIG_TYPES.get(data_type, f"TYPE_{data_type}"))
    return value


@dataclass(slots=True)
class _Total:
    """Calls that ended in a way, and how long they took."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


class _OfVersion:
    """What happened on one version."""

    def __init__(self) -> None:
        self.success, self.fail = _Total(), _Total()
        self.images = 0
        self.last_ms = 0


class Statistics:
    """Requests of this protocol by version, since it was loaded. Batches mix callers and are in the metrics."""

    def __init__(self) -> None:
        self._versions: WeakKeyDictionary[Line, _OfVersion] = WeakKeyDictionary()

    def succeeded(self, line: Line, images: int, ns: int) -> None:
        """A request was answered."""
        of = self._of(line)
        of.success.add(ns)
        of.images += images
        of.last_ms = time.time_ns() // 1_000_000

    def failed(self, line: Line, ns: int) -> None:
        """A request ended with an error."""
        self._of(line).fail.add(ns)

    def message(self, line: Line) -> oip.ModelStatistics:
        """What Triton's client understands of it; what is not known stays 0."""
        of = self._of(line)
        stats = oip.InferStatistics(
            success=oip.StatisticDuration(count=of.success.count, ns=of.success.ns),
            fail=oip.StatisticDuration(count=of.fail.count, ns=of.fail.ns),
        )
        return oip.ModelStatistics(
            name=MODEL,
            version=line.artifact_id,
            last_inference=of.last_ms,
            inference_count=of.images,
            inference_stats=stats,
        )

    def _of(self, line: Line) -> _OfVersion:
        return self._versions.setdefault(line, _OfVersion())
