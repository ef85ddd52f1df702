"""Calls at the door: how many are open at once, when their requests are read, and malformed ones."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.errors import ImageTooLarge
from deepmcat_core.logs import JsonFormatter
from deepmcat_server.app import run_server
from deepmcat_server.config import Settings
from deepmcat_server.errors import ServerBusy, ServerClosing
from deepmcat_server.gate import MAX_PROBES, Gate
from deepmcat_server.interceptors import CALL, Call
from deepmcat_server.streams import Closing

SERVICE = "/deepmcat.v1.CategorizationService"


async def ending(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """How a call ends: code, reason, trailers."""
    code, trailers = await call.code(), dict(await call.trailing_metadata())
    info = ErrorInfo()
    if content := trailers.get("grpc-status-details-bin"):
        assert Status.FromString(content).details[0].Unpack(info)
    return code, info.reason, trailers


def raw_unary(served: Any, method: str = "Categorize") -> Any:
    """A unary call that a test sends in its own time: on the wire it is a stream of one request."""
    return served.channel.stream_unary(f"{SERVICE}/{method}")()


@asynccontextmanager
async def place(caller: str, gate: Gate, method: str = "CategorizeStream") -> AsyncIterator[None]:
    """A place for a call of a caller."""
    CALL.set(Call(caller=caller))
    async with gate.around("deepmcat.v1.CategorizationService", method, None):
        yield


async def places_of(caller: str, gate: Gate, places: AsyncExitStack, **of: str) -> int:
    """Take as many places as there are for a caller; how many these are."""
    for count in itertools.count():
        try:
            await places.enter_async_context(place(caller, gate, **of))
        except ServerBusy:
            return count
    raise AssertionError


@pytest.fixture(name="log")
def log_fixture() -> Any:
    """The lines that are logged, as the server's formatter writes them."""
    stream, root = io.StringIO(), logging.getLogger()
    ours = logging.getLogger("deepmcat")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    ours.setLevel(level)
    root.removeHandler(handler)


async def test_one_stream_too_many_is_busy(serving, pngs, request_of, until):
    """Over max_streams a stream ends with SERVER_BUSY, a delay and the pushback trailer; all else is answered."""
    message = pb.CategorizeStreamRequest(item=request_of(pngs[0]))
    async with serving(max_streams=2) as served:
        streams = [served.stub.CategorizeStream() for _ in range(2)]
        for stream in streams:
            await stream.write(message)
            assert (await stream.read()).WhichOneof("result") == "categorization"
        code, reason, trailers = await ending(served.stub.CategorizeStream())

        await served.stub.Categorize(request_of(pngs[1]))
        limits = (await served.stub.GetArtifact(pb.GetArtifactRequest())).limits
        health = await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflected = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(iter([asked]))
        assert [answer.list_services_response.service[0].name async for answer in reflected]

        await streams[0].done_writing()
        assert await streams[0].code() is grpc.StatusCode.OK
        again = served.stub.CategorizeStream()
        await again.write(message)
        assert (await again.read()).WhichOneof("result") == "categorization"

    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert trailers["grpc-retry-pushback-ms"] == "500"
    assert Status.FromString(trailers["grpc-status-details-bin"]).details[1].Unpack(RetryInfo())
    assert (limits.max_streams, limits.max_calls, limits.decode_timeout_ms) == (2, 64, 60_000)
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_one_call_too_many_is_refused_before_it_is_read(serving, pngs, request_of, until):
    """Over max_calls a call ends with SERVER_BUSY although not a byte of its request was sent; streams go on."""
    async with serving(max_calls=1) as served:
        held = raw_unary(served)
        stream = served.stub.CategorizeStream()
        await stream.write(pb.CategorizeStreamRequest(item=request_of(pngs[0])))
        assert (await stream.read()).WhichOneof("result") == "categorization"

        code, reason, _ = await ending(raw_unary(served))
        health = await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())
        await held.write(request_of(pngs[1]).SerializeToString())
        await held.done_writing()
        answer = pb.CategorizeResponse.FromString(await held)

    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert answer.categorization.assignment.cluster_id == 1


async def test_one_caller_never_has_all_places():
    """A caller that opens calls without end gets four fifths of them, and another then finds some for itself."""
    gate = Gate(max_streams=64, max_calls=64, closing=Closing())
    async with AsyncExitStack() as places:
        greedy = await places_of("greedy", gate, places)
        with pytest.raises(ServerBusy, match="may while 12 are free"):
            await places.enter_async_context(place("greedy", gate))
        newcomer = await places_of("newcomer", gate, places)
        third = await places_of("third", gate, places)
        of_another_kind = await places_of("greedy", gate, places, method="Categorize")

    assert (greedy, newcomer, third, of_another_kind) == (52, 10, 2, 52)
    async with AsyncExitStack() as places:
        assert await places_of("newcomer", gate, places) == 52, "places that were given back are not free"


async def test_a_caller_alone_may_have_two_of_two():
    """Small bounds are not made smaller: sharing begins where there is something to share."""
    for bound in (1, 2):
        gate = Gate(max_streams=bound, max_calls=bound, closing=Closing())
        async with AsyncExitStack() as places:
            assert await places_of("alone", gate, places) == bound


async def test_a_closing_server_sends_new_calls_elsewhere():
    """From the moment in which streams are cut off, new calls get SERVER_CLOSING; probes are answered still."""
    closing = Closing()
    gate = Gate(max_streams=1, max_calls=1, closing=closing)
    closing.close()
    for method in ("CategorizeStream", "Categorize"):
        with pytest.raises(ServerClosing):
            async with place("late", gate, method):
                raise AssertionError
    async with place("probe", gate, "ServerLive"):
        return


async def test_probes_have_a_bound_too(serving, pngs, request_of):
    """Health watches that stay open are bounded as well, and take no place from calls."""
    async with serving() as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_PROBES)]
        for watch in watches:
            await watch.read()
        code, reason, _ = await ending(stub.Watch(health_pb2.HealthCheckRequest()))
        answer = await served.stub.Categorize(request_of(pngs[2]))

    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert answer.categorization.assignment.cluster_id == 2


async def test_a_request_that_does_not_arrive(serving):
    """A call whose request is not there within max_timeout_s, or never comes, gives its place back."""
    async with serving(max_calls=1, max_timeout_s=0.1) as served:
        late = await ending(raw_unary(served))
        nothing = raw_unary(served)
        await nothing.done_writing()
        empty = await ending(nothing)

    assert late[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert empty[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_malformed_requests_are_the_caller_s(serving, pngs, request_of, log):
    """Bytes that are no message end the call with INVALID_REQUEST and one access line, after what came before."""
    async with serving() as served:
        unary = served.channel.unary_unary(f"{SERVICE}/Categorize")(b"\x0a\x02\xff\xfeJOHN_DOE")
        alone = await ending(unary)
        stream = served.channel.stream_stream(f"{SERVICE}/CategorizeStream")()
        await stream.write(pb.CategorizeStreamRequest(item=request_of(pngs[3])).SerializeToString())
        await stream.write(b"\x0a\xff\xff\xff")
        answer = pb.CategorizeStreamResponse.FromString(await stream.read())
        after = await ending(stream)

    assert alone[:2] == after[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert answer.categorization.assignment.cluster_id == 3
    assert [(line["event"], line["method"], line["code"]) for line in log() if line["event"] != "draining"] == [
        ("call", "Categorize", "INVALID_ARGUMENT"),
        ("call", "CategorizeStream", "INVALID_ARGUMENT"),
    ]


async def test_the_decoding_time_limit_is_the_workers_limit(artifact, held):
    """decode_timeout_s reaches the workers: one that allows no time lets not even the warm-up pass."""
    settings = Settings(listen="127.0.0.1:0", admin="127.0.0.1:0", decode_workers=1, decode_timeout_s=1e-9)
    with pytest.raises(ImageTooLarge, match="took longer"):
        async with run_server(settings, Categorizer(artifact, held, settings.limits)):
            await asyncio.sleep(0)
