"""Spans of calls and their images (OpenTelemetry), in the trace of whoever calls (W3C Trace Context). Needs [otel].

    deepmcat.v1.CategorizationService/CategorizeStream     a call
      └─ image                                             each of its first images
           └─ receive (admit within it) · decode · queue · encode · assign

The stages are those of the metrics (traced_metrics.py). An image's spans are made when it has ended, from the times
that were taken on its way. Never in a span: text, UIDs, item ids, callers other than by their id, messages of errors.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from importlib.metadata import version
from typing import NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.context import Context as Parent
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deepmcat_server.gate import PROBES, STREAMS
from deepmcat_server.interceptors import OWN_PACKAGES, Context

FLUSH_S = 3.0
"""How long a server that ends waits for a collector to take what is left."""

MAX_QUEUE = 2048
"""Spans that wait for the collector; beyond it the oldest are dropped."""

EXPORT_TIMEOUT_S = 5.0

FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that are the server's error and not the caller's (OpenTelemetry's semantic conventions for gRPC servers)."""

IMAGE_A_MESSAGE = STREAMS - {"ModelStreamInfer"}
"""Methods of which each message is one image."""

Attributes = Mapping[str, str | int]

_FAILED = trace.Status(trace.StatusCode.ERROR)
_PROPAGATOR = TraceContextTextMapPropagator()


class Stage(NamedTuple):
    """A stage that has ended. failed: whether the server is to blame."""

    name: str
    start_ns: int
    end_ns: int
    failed: bool = False
    attributes: Attributes | None = None


class ImageTrace:
    """One image: when it began, and what its stages took. All becomes spans when it ends."""

    refused: Exception | None = None
    """Why it did not get in."""

    def __init__(self, tracer: trace.Tracer, parent: Parent) -> None:
        self._tracer = tracer
        self._parent = parent
        self._start_ns = time.time_ns()
        self._stages: list[Stage] = []

    def stage(self, stage: Stage) -> None:
        """A stage has ended."""
        self._stages.append(stage)

    def refuse(self, error: Exception) -> None:
        """It does not get in; the stage that it is in is its last."""
        self.refused = error

    def end(self, result: str, *, failed: bool) -> None:
        """It has ended. result: as the metrics count it."""
        attributes = {"deepmcat.result": result}
        span = self._tracer.start_span("image", self._parent, attributes=attributes, start_time=self._start_ns)
        parent = trace.set_span_in_context(span)
        for stage in self._stages:
            _make(self._tracer, parent, stage)
        if failed:
            span.set_status(_FAILED)
        span.end()


class _NoImage(ImageTrace):
    """One of the many images that have no spans."""

    def __init__(self) -> None:
        """It knows nothing."""

    def stage(self, stage: Stage) -> None:
        """Nothing."""

    def refuse(self, error: Exception) -> None:
        """Nothing."""

    def end(self, result: str, *, failed: bool) -> None:
        """Nothing."""


NO_IMAGE = _NoImage()


class CallTrace:
    """The span of a call, and how many of its images may have spans yet."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, method: str, *, images: int) -> None:
        self.images_are_messages = method in IMAGE_A_MESSAGE
        self._tracer = tracer
        self._span = span
        self._images = self._stages = images

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits: the caller's, where the caller traces."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a measurement of the call to its trace; None where the trace is not kept."""
        return {"trace_id": self.trace_id} if self._span.is_recording() else None

    def image(self) -> ImageTrace:
        """One more image, which begins now."""
        self._images -= 1
        return ImageTrace(self._tracer, trace.set_span_in_context(self._span)) if self._images >= 0 else NO_IMAGE

    def stage(self, stage: Stage) -> None:
        """A stage of no image alone has ended. They have the bound of images."""
        self._stages -= 1
        if self._stages >= 0:
            _make(self._tracer, trace.set_span_in_context(self._span), stage)

    def end(self, code: str, *, images: int, caller_id: str) -> None:
        """The call has ended. code: gRPC's."""
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": grpc.StatusCode[code].value[0],
                "deepmcat.images": images,
                "deepmcat.caller_id": caller_id,
            }
        )
        if code in FAULTS:
            self._span.set_status(_FAILED)
        self._span.end()


CALL_TRACE: ContextVar[CallTrace | None] = ContextVar("CALL_TRACE", default=None)
"""That of the current handler."""


class Tracing:
    """Begins the spans of calls. A thread of its own sends them; `flush` sends the last, within FLUSH_S.

    sample: of calls whose callers do not trace, the share that is; callers who do have decided. images: of one call,
    those that have spans of their own.
    """

    def __init__(self, exporter: SpanExporter, *, sample: float, images: int) -> None:
        ours = Resource({"service.name": "deepmcat", "service.version": version("deepmcat")})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=ours.merge(OTELResourceDetector().detect()),  # of OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
            shutdown_on_exit=False,  # it would wait for half a minute
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUE))
        self._tracer = self._provider.get_tracer("deepmcat.server")
        self._images = images

    def begin(self, service: str, method: str, context: Context) -> CallTrace | None:
        """The trace of a call that begins, for its task and those that come of it; None for probes."""
        if not service.startswith(OWN_PACKAGES) or method in PROBES:
            return None
        carrier = {key: str(value) for key, value in context.invocation_metadata() or () if key in _PROPAGATOR.fields}
        span = self._tracer.start_span(
            f"{service}/{method}",
            _PROPAGATOR.extract(carrier),
            trace.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        call = CallTrace(self._tracer, span, method, images=self._images if span.is_recording() else 0)
        CALL_TRACE.set(call)
        return call

    async def flush(self) -> None:
        """Send what is left, and end. A collector that is slow or away does not hold this up."""
        ending = threading.Thread(target=self._provider.shutdown, name="deepmcat-spans", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_S)


def to_collector(url: str, *, sample: float, images: int) -> Tracing:
    """Tracing to where a collector takes OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces."""
    return Tracing(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S), sample=sample, images=images)


def _make(tracer: trace.Tracer, parent: Parent, stage: Stage) -> None:
    span = tracer.start_span(stage.name, parent, attributes=stage.attributes, start_time=stage.start_ns)
    if stage.failed:
        span.set_status(_FAILED)
    span.end(stage.end_ns)
