"""Traces: who called begins them, stages are in them, nothing of an image is, and without them nothing is paid."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from itertools import pairwise
from typing import ClassVar

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import AsyncClient, Client
from deepmcat_core.errors import ConfigError
from deepmcat_server import tracing
from deepmcat_server.config import Settings, load
from deepmcat_server.metrics import Metrics
from deepmcat_server.tracing import Tracing

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"), ("tracestate", "vendor=1"))
NOT_KEPT = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),)


@pytest.fixture(name="spans")
def spans_fixture():
    """Where spans come to when the server has ended."""
    return InMemorySpanExporter()


@pytest.fixture(name="lines")
def lines_fixture(log):
    """The access lines."""
    return lambda: [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "call"]


def traced(spans, *, sample=1.0, images=16) -> Tracing:
    return Tracing(spans, sample=sample, images=images)


def by_name(spans) -> dict[str, list]:
    found: dict[str, list] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def stream_of(contents) -> list[pb.CategorizeStreamRequest]:
    return [pb.CategorizeStreamRequest(item=pb.CategorizeRequest(image=pb.Image(encoded=c))) for c in contents]


async def test_a_call_goes_on_the_caller_s_trace(serving, spans, pngs, request_of, lines):
    """The caller's trace goes on here: the same id, its span as the parent, its state kept, and its id in the log."""
    async with serving(tracing=traced(spans, sample=0.0)) as served:
        await served.stub.Categorize(request_of(pngs[0]), metadata=CALLER)

    call = by_name(spans)["deepmcat.v1.CategorizationService/Categorize"][0]
    assert trace.format_trace_id(call.context.trace_id) == TRACE_ID
    assert trace.format_span_id(call.parent.span_id) == SPAN_ID
    assert call.context.trace_state.get("vendor") == "1"
    assert call.kind is trace.SpanKind.SERVER
    assert [line["trace_id"] for line in lines()] == [TRACE_ID]


async def test_what_the_caller_does_not_keep_is_not_kept(serving, spans, pngs, request_of, lines):
    """A caller's decision against a trace holds, whatever the share is; the log still leads to it."""
    async with serving(tracing=traced(spans)) as served:
        await served.stub.Categorize(request_of(pngs[0]), metadata=NOT_KEPT)

    assert spans.get_finished_spans() == ()
    assert [line["trace_id"] for line in lines()] == [TRACE_ID]


@pytest.mark.parametrize(("sample", "traces"), [(0.0, 0), (1.0, 3)])
async def test_calls_without_a_trace_are_sampled(serving, spans, pngs, request_of, sample, traces):
    """Where the caller does not trace, the share decides; a traceparent that is none is no trace."""
    async with serving(tracing=traced(spans, sample=sample)) as served:
        await served.stub.Categorize(request_of(pngs[0]))
        await served.stub.Categorize(request_of(pngs[0]), metadata=(("traceparent", "00-no-trace-01"),))
        await served.stub.Categorize(request_of(pngs[0]))

    calls = by_name(spans).get("deepmcat.v1.CategorizationService/Categorize", [])
    assert len({call.context.trace_id for call in calls}) == traces
    assert all(call.parent is None for call in calls)


async def test_every_stage_is_in_the_trace(serving, spans, pngs, request_of):
    """A call has one span for its image, and that has the stages, in their order and within it."""
    async with serving(tracing=traced(spans)) as served:
        await served.stub.Categorize(request_of(pngs[0]))

    found = by_name(spans)
    image = found["image"][0]
    stages = sorted(
        (s for s in spans.get_finished_spans() if s.parent and s.parent.span_id == image.context.span_id),
        key=lambda s: s.start_time,
    )
    assert [s.name for s in stages] == ["receive", "decode", "queue", "encode", "assign"]
    assert image.start_time <= stages[0].start_time
    assert all(a.end_time <= b.start_time for a, b in pairwise(stages))
    assert stages[-1].end_time <= image.end_time
    assert dict(image.attributes) == {"deepmcat.result": "ok"}
    assert dict(found["encode"][0].attributes) == {"deepmcat.batch_size": 1}
    call = found["deepmcat.v1.CategorizationService/Categorize"][0]
    assert image.parent.span_id == call.context.span_id
    attributes = dict(call.attributes)
    assert len(attributes.pop("deepmcat.caller_id")) == 16
    assert attributes == {
        "rpc.system": "grpc",
        "rpc.service": "deepmcat.v1.CategorizationService",
        "rpc.method": "Categorize",
        "rpc.grpc.status_code": 0,
        "deepmcat.images": 1,
    }


async def test_waiting_and_encoding_are_told_apart(serving, spans, pngs, until):
    """Images that waited for a batch have the wait in `queue`, and the batch that they were in in `encode`."""
    async with serving(tracing=traced(spans)) as served:
        served.engine.free.clear()
        served.engine.entered.clear()
        call = served.stub.CategorizeStream()
        await call.write(stream_of(pngs)[0])
        await until(served.engine.entered.is_set)
        for message in stream_of(pngs)[1:]:
            await call.write(message)
        await until(lambda: served.scraped["deepmcat_queue_depth"] == 3)
        held_s = 0.1
        await asyncio.sleep(held_s)
        served.engine.free.set()
        await call.done_writing()
        assert [r.WhichOneof("result") async for r in call] == ["categorization"] * 4

    found = by_name(spans)
    assert Counter(s.attributes["deepmcat.batch_size"] for s in found["encode"]) == {1: 1, 3: 3}
    assert sum(s.end_time - s.start_time > held_s * 1e9 for s in found["queue"]) == 3
    assert {"receive": 4, "admit": 4, "decode": 4, "assign": 4}.items() <= {n: len(s) for n, s in found.items()}.items()
    for image in found["image"]:
        own = [s for s in spans.get_finished_spans() if s.parent and s.parent.span_id == image.context.span_id]
        assert sorted(s.name for s in own) == ["admit", "assign", "decode", "encode", "queue", "receive"]


async def test_the_spans_of_a_stream_are_bounded(serving, spans, pngs):
    """Only the first images of a call have spans; the call still tells how many there were."""
    async with serving(tracing=traced(spans, images=2)) as served:
        assert len([r async for r in served.stub.CategorizeStream(iter(stream_of(pngs * 5)))]) == 20

    found = by_name(spans)
    assert {name: len(found[name]) for name in ("image", "receive", "decode", "queue", "encode", "assign")} == {
        "image": 2, "receive": 2, "decode": 2, "queue": 2, "encode": 2, "assign": 2,
    }  # fmt: skip
    assert found["deepmcat.v1.CategorizationService/CategorizeStream"][0].attributes["deepmcat.images"] == 20


async def test_the_server_s_faults_are_errors_and_callers_are_not(serving, spans, pngs, request_of):
    """A status is an error where the server is to blame: a failed batch is, bytes that are no image are not."""
    async with serving(tracing=traced(spans)) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.stub.Categorize(request_of(b"no image" * 20))
        served.engine.failure = RuntimeError("broken")
        with pytest.raises(grpc.aio.AioRpcError):
            await served.stub.Categorize(request_of(pngs[0]))
        answers = [r async for r in served.stub.CategorizeStream(iter(stream_of(pngs[:1])))]

    assert answers[0].WhichOneof("result") == "error"
    found = by_name(spans)
    calls = found["deepmcat.v1.CategorizationService/Categorize"]
    codes = {c.attributes["rpc.grpc.status_code"]: c.status.status_code for c in calls}
    assert codes == {3: trace.StatusCode.UNSET, 13: trace.StatusCode.ERROR}
    failed = [(s.attributes["deepmcat.result"], s.status.status_code) for s in found["image"]]
    assert sorted(failed) == [
        ("inference_failed", trace.StatusCode.ERROR),
        ("inference_failed", trace.StatusCode.ERROR),
        ("unsupported_image", trace.StatusCode.UNSET),
    ]
    assert {s.status.status_code for s in found["encode"]} == {trace.StatusCode.ERROR}
    assert all(s.status.description is None and not s.events for s in spans.get_finished_spans())


async def test_a_refused_image_of_a_stream_has_its_span(serving, spans, pngs, request_of):
    """An image that did not get in says why, and was received only."""
    messages = [pb.CategorizeStreamRequest(item=request_of(pngs[0], artifact_id="0" * 64))]
    async with serving(tracing=traced(spans)) as served:
        assert [r.error.code async for r in served.stub.CategorizeStream(iter(messages))] == [5]

    found = by_name(spans)
    assert [s.attributes["deepmcat.result"] for s in found["image"]] == ["artifact_not_found"]
    assert "decode" not in found
    assert len(found["receive"]) == 1


async def test_probes_are_not_traced(serving, spans):
    """Health is asked every few seconds by nobody in particular."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with serving(tracing=traced(spans)) as served:
        await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(), metadata=CALLER)

    assert spans.get_finished_spans() == ()


async def test_without_tracing_no_call_has_one(serving, pngs, request_of, lines):
    """Off is the default: no trace in an access line, and the metrics are the plain ones."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]), metadata=CALLER)
        line = served.running.lines.find()
        assert type(line.pipeline._metrics) is Metrics
        assert line.pipeline._metrics.of_line() is line.pipeline._metrics

    assert [line for line in lines() if "trace_id" in line] == []


def test_the_extra_is_needed_for_tracing_only():
    """A server without OpenTelemetry starts as long as no tracing is asked for; then it names the extra."""
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import deepmcat_server.app\n"
        "from deepmcat_core.errors import MissingExtra\n"
        "from deepmcat_server.config import load\n"
        "load()\n"
        "try:\n"
        "    load(flags={'trace_endpoint': 'http://127.0.0.1:4318'})\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "pip install 'deepmcat[otel]'" in ended.stdout


async def test_a_client_that_traces_takes_its_span_along(serving, spans, pngs):
    """Calls of both clients are in the trace of their program; without a current span they send nothing."""
    provider = TracerProvider()
    tracer = provider.get_tracer("program")
    async with serving(tracing=traced(spans, sample=0.0)) as served:
        target = str(served.running.listen)
        async with AsyncClient(target) as client:
            await client.categorize(pngs[0])
            with tracer.start_as_current_span("work") as work:
                await client.categorize(pngs[0])

        def blocking() -> None:
            with Client(target) as client, trace.use_span(work):
                client.categorize(pngs[0])

        await asyncio.to_thread(blocking)

    calls = by_name(spans)["deepmcat.v1.CategorizationService/Categorize"]
    assert [call.parent.span_id for call in calls] == [work.get_span_context().span_id] * 2


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/", "https://collector.example/v1/traces"),
        ("https://collector.example/otlp/v1/traces", "https://collector.example/otlp/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_gets_the_standard_one(given, used):
    """A collector's address is enough; a path is taken as it is."""
    assert Settings(trace_endpoint=given).trace_endpoint == used


@pytest.mark.parametrize("given", ["127.0.0.1:4318", "grpc://collector:4317", "http://", "http://name:word@collector"])
def test_what_is_no_endpoint_is_refused(given):
    """Only http and https, and no password in a setting that is shown."""
    with pytest.raises(ConfigError, match="trace_endpoint"):
        load(flags={"trace_endpoint": given})


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP, or never answers."""

    taken: ClassVar[list[ExportTraceServiceRequest]]
    free: ClassVar[threading.Event]

    def do_POST(self) -> None:
        self.free.wait(20)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(name="collector")
def collector_fixture():
    """A collector, with what it has taken; it answers while `free` is set."""

    class Mine(Collector):
        taken: ClassVar[list[ExportTraceServiceRequest]] = []
        free: ClassVar[threading.Event] = threading.Event()

    Mine.free.set()
    with HTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Mine, f"http://127.0.0.1:{server.server_port}"
        Mine.free.set()
        server.shutdown()
        thread.join()


async def test_a_server_that_ends_sends_what_is_left(serving, collector, pngs, request_of, monkeypatch):
    """A collector has the spans when the server has ended, with the service's name and what the environment adds."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    handler, url = collector
    async with serving(trace_endpoint=url, trace_sample=1.0) as served:
        await served.stub.Categorize(request_of(pngs[0]))

    resources = [resource for request in handler.taken for resource in request.resource_spans]
    attributes = {a.key: a.value.string_value for resource in resources for a in resource.resource.attributes}
    assert attributes == {
        "service.name": "deepmcat",
        "service.version": version("deepmcat"),
        "deployment.environment.name": "test",
    }
    names = [span.name for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == sorted(
        ["deepmcat.v1.CategorizationService/Categorize", "image", "receive", "decode", "queue", "encode", "assign"]
    )


async def test_a_collector_that_hangs_holds_nothing_up(collector, spans):
    """The end waits for a collector as long as it may, and no longer; calls never do."""
    handler, url = collector
    handler.free.clear()
    hung = tracing.to_collector(url, sample=1.0, images=1)
    hung.begin("deepmcat.v1.CategorizationService", "Categorize", NoMetadata()).end("OK", images=0, caller_id="")

    async with asyncio.timeout(tracing.FLUSH_S + 10):
        await hung.flush()

    assert handler.taken == []


class NoMetadata:
    """A call without metadata."""

    def invocation_metadata(self) -> tuple[()]:
        return ()
