"""CategorizeStream through AsyncClient when servers close, restart or go away."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import AsyncClient
from deepmcat_client.errors import TryAgain

from .fakes import QUICK, FakeServicer, Received, StreamScript, collect, fail, respond, serving, sizes


async def test_what_a_closing_server_leaves_unanswered_is_sent_again() -> None:
    """After SERVER_CLOSING in the middle, the rest goes to a new call; nothing is answered twice."""

    async def closing(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for received in images:
            yield respond(received)
            if call < 4 and received.item_id in ("10", "20", "30"):
                await fail(context, "SERVER_CLOSING")

    servicer = FakeServicer(stream=closing)
    answers = await collect(servicer, [(n, b"x" * n) for n in range(1, 51)])

    assert [(n, n) for n in range(1, 51)] == sizes(answers)
    assert servicer.stream_calls == 4


async def test_a_server_that_always_closes_is_given_up() -> None:
    """Calls that bring no answer are tried a bounded number of times, then the error is raised."""

    async def closed(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        await fail(context, "SERVER_CLOSING")
        async for received in images:
            yield respond(received)

    servicer = FakeServicer(stream=closed)

    with pytest.raises(TryAgain):  # ServerClosing, or Unavailable where grpc issue 36066 swallows the status
        await collect(servicer, [(1, b"x")])
    assert QUICK.attempts == servicer.stream_calls


def closed_after_one(returns_on_call: int) -> StreamScript:
    """Answers one image, then refuses every call until it is the given one, as a server that restarts."""

    async def script(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        if 1 < call < returns_on_call:
            await fail(context, "SERVER_CLOSING")
        async for received in images:
            yield respond(received)
            if call == 1:
                await fail(context, "SERVER_CLOSING")

    return script


async def test_a_server_that_has_answered_gets_the_time_of_a_restart() -> None:
    """In the middle of a stream the number of tries is no bound while the time for a restart lasts."""
    servicer = FakeServicer(stream=closed_after_one(returns_on_call=3 * QUICK.attempts))

    answers = await collect(servicer, [(n, b"x" * n) for n in range(1, 11)])

    assert [(n, n) for n in range(1, 11)] == sizes(answers)


async def test_a_server_that_does_not_come_back_is_given_up() -> None:
    """When the time for a restart is over, the error is raised; what was answered before has been delivered."""
    servicer = FakeServicer(stream=closed_after_one(returns_on_call=10**9))
    retry = dataclasses.replace(QUICK, restart_s=1.0)
    answers: list[tuple[int, Any]] = []

    async def take_all(stream: AsyncIterator[tuple[int, Any]]) -> None:
        async for pair in stream:
            answers.append(pair)  # noqa: PERF401 - a comprehension would lose those before the error

    async with serving(servicer) as address, AsyncClient(address, retry=retry) as client:
        with pytest.raises(TryAgain):
            await take_all(client.categorize_stream([(n, b"x" * n) for n in range(1, 11)]))

    assert sizes(answers) == [(1, 1)]
    assert servicer.stream_calls > QUICK.attempts


async def test_a_stream_that_ends_early_is_tried_again() -> None:
    """A server that ends the call without an error and without all answers counts as gone."""

    async def early(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        if call > 1:
            async for received in images:
                yield respond(received)

    assert sizes(await collect(FakeServicer(stream=early), [(1, b"x")])) == [(1, 1)]
