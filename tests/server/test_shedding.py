"""Calls that come too late for any image: refused before they are read."""

from __future__ import annotations

import asyncio
import math
from importlib.util import find_spec
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server.lines import Line, Lines

LATE_S = 1.4  # half of it is a deadline that a busy machine keeps; all of it is within the budget of 2 s


def unread(served: Any, timeout_s: float, method: str) -> Any:
    """A unary call of which nothing is sent until the test does."""
    return served.channel.stream_unary(method)(timeout=timeout_s)


async def code_and_reason(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ends."""
    code, trailers, info = await call.code(), dict(await call.trailing_metadata()), ErrorInfo()
    assert Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
    assert int(trailers["grpc-retry-pushback-ms"]) > 0
    return code, info.reason


@pytest.mark.parametrize(
    "method",
    [
        "/deepmcat.v1.CategorizationService/Categorize",
        pytest.param(
            "/inference.GRPCInferenceService/ModelInfer",
            marks=pytest.mark.skipif(find_spec("tritonclient") is None, reason="needs the extra triton"),
        ),
    ],
)
async def test_a_call_that_no_image_could_be_answered_of_in_time_is_refused_unread(
    serving, pngs, request_of, until, method
):
    """Once an image was refused, a call with as little time ends before its request is sent; a patient one is read."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]))  # now the server knows how long it takes
        served.engine.entered.clear()
        served.engine.free.clear()
        held = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(served.engine.entered.is_set)
        await asyncio.sleep(LATE_S)  # the batch in progress is that late, and expected to be as late again
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Categorize(request_of(pngs[1]), timeout=LATE_S / 2)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        refused = await code_and_reason(unread(served, LATE_S / 2, method))
        patient = unread(served, 20, "/deepmcat.v1.CategorizationService/Categorize")
        await patient.write(request_of(pngs[2]).SerializeToString())
        await patient.done_writing()
        await until(lambda: served.running.batcher.depth == 1)
        served.engine.free.set()
        answer = pb.CategorizeResponse.FromString(await patient)
        await held

    assert refused == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert answer.categorization.assignment.cluster_id == 2
    assert served.scraped["deepmcat_refused_total reason=deadline"] == 2
    assert served.scraped["deepmcat_images_total result=server_busy"] == 2


async def test_who_asks_for_an_idle_artifact_is_not_refused_for_the_load_of_another():
    """An artifact kept for rolling back counts as long as somebody asks for it by its id, and not before."""
    busy, idle = Line.__new__(Line), Line.__new__(Line)
    for line in (busy, idle):
        line.asked_for, line._images = -math.inf, 0
    lines = Lines(keep=1)
    lines._by_id = {"a" * 64: idle, "b" * 64: busy}
    lines.activate("default", idle)
    lines.activate("default", busy)

    assert lines.at_work == [busy]
    assert lines.find("a" * 64) is idle
    assert lines.at_work == [idle, busy]


async def test_a_call_is_read_where_nothing_was_refused(serving, pngs, request_of, until):
    """Without a refusal a moment ago nobody asks for a forecast before the request is there."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]))
        call = unread(served, 20, "/deepmcat.v1.CategorizationService/Categorize")
        await asyncio.sleep(0.05)
        assert not call.done()
        await call.write(request_of(pngs[1]).SerializeToString())
        await call.done_writing()
        answer = pb.CategorizeResponse.FromString(await call)

    assert answer.categorization.assignment.cluster_id == 1
