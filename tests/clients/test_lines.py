"""What lies between client and server: connections that are cut, that die silently, and calls that are left alone."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import AsyncClient

from .fakes import QUICK, FakeServicer, Received, respond, serving, sizes, status
from .lines import line_to

PATIENT = dataclasses.replace(QUICK, first_s=0.05, most_s=0.2, attempts=10)


def images(count: int) -> list[tuple[int, bytes]]:
    return [(number, b"x" * number) for number in range(1, count + 1)]


async def test_a_connection_that_is_cut_loses_and_doubles_nothing() -> None:
    """A proxy resets the connection again and again while images stream: one answer each, in order."""
    servicer, seen = FakeServicer(), []
    async with (
        serving(servicer) as address,
        line_to(address) as line,
        AsyncClient(line.address, retry=PATIENT, in_flight=8) as client,
    ):
        async for number, answer in client.categorize_stream(images(90)):
            seen.append((number, answer))
            if number % 30 == 15:
                line.cut()
    assert sizes(seen) == [(n, n) for n in range(1, 91)]
    assert line.connections == 4
    # What was answered is not sent again: at most what was in flight at each cut.
    assert len(servicer.received) <= 90 + 3 * 8


async def test_a_connection_that_dies_silently_is_noticed() -> None:
    """Nothing is closed and nothing arrives any more: keepalive ends it, and the rest goes over another."""
    servicer, seen = FakeServicer(), []
    async with (
        serving(servicer) as address,
        line_to(address) as line,
        AsyncClient(line.address, retry=PATIENT, in_flight=8, keepalive_s=0.2) as client,
    ):
        async with asyncio.timeout(60):
            async for number, answer in client.categorize_stream(images(40)):
                seen.append((number, answer))
                if number == 10:
                    line.freeze()
    assert sizes(seen) == [(n, n) for n in range(1, 41)]
    assert line.connections >= 2


async def test_an_idle_connection_that_dies_silently_is_replaced_before_it_is_needed() -> None:
    """Between calls, too: the next call does not wait for a connection that nobody hears."""
    async with (
        serving(FakeServicer()) as address,
        line_to(address) as line,
        AsyncClient(line.address, retry=PATIENT, keepalive_s=0.2) as client,
    ):
        await client.categorize(b"x")
        line.freeze()
        async with asyncio.timeout(20):
            while line.connections < 2:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.05)
            assert (await client.categorize(b"12")).assignment.cluster_id == 2


async def test_cancellation_leaves_nothing_running() -> None:
    """A stream that is cancelled in the middle ends its calls, its tasks and the thread of its images."""
    ended = asyncio.Event()

    async def held(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        context.add_done_callback(lambda _: ended.set())
        async for image in received:
            if image.item_id == "3":
                await asyncio.sleep(60)
            yield respond(image)

    def endless() -> Iterator[tuple[int, bytes]]:
        number = 0
        while True:
            yield (number := number + 1), b"x"

    async def take_all(client: AsyncClient) -> None:
        async with aclosing(client.categorize_stream(endless())) as answers:
            async for number, _ in answers:
                if number == 2:
                    two.set()

    two = asyncio.Event()
    async with serving(FakeServicer(stream=held)) as address, AsyncClient(address) as client:
        before, threads = asyncio.all_tasks(), set(threading.enumerate())
        taking = asyncio.create_task(take_all(client))
        async with asyncio.timeout(20):
            await two.wait()
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            await ended.wait()
            assert {task for task in asyncio.all_tasks() - before if "deepmcat" in repr(task.get_coro())} == set()
            while any(t.name == "deepmcat-items" for t in set(threading.enumerate()) - threads):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_images_that_never_come_do_not_keep_a_process() -> None:
    """The thread that waits for an image for ever is a daemon, and leaving the stream does not wait for it."""
    never = threading.Event()

    def stuck() -> Iterator[tuple[int, bytes]]:
        yield 1, b"x"
        never.wait()

    async with (
        serving(FakeServicer()) as address,
        AsyncClient(address) as client,
        asyncio.timeout(20),
        aclosing(client.categorize_stream(stuck())) as answers,
    ):
        assert (await anext(answers))[0] == 1
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "deepmcat-items")
    never.set()


async def test_a_server_without_room_is_sent_less_at_once() -> None:
    """Refusals halve what is on its way, so that few images are sent twice; every one is answered."""
    room, inside = 4, 0

    async def small(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        """Answers what finds room, a little later; refuses the rest. The order is that of arrival."""
        nonlocal inside
        answers: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            nonlocal inside
            async for image in received:
                refused = inside >= room
                inside += not refused
                answers.put_nowait((image, refused))
            answers.put_nowait(None)

        reading = asyncio.create_task(read())
        while (entry := await answers.get()) is not None:
            image, refused = entry
            if not refused:
                await asyncio.sleep(0.002)
                inside -= 1
            yield respond(image, status("SERVER_BUSY", retry_s=0.01) if refused else None)
        await reading

    servicer = FakeServicer(stream=small)
    async with serving(servicer) as address, AsyncClient(address, retry=QUICK, in_flight=64) as client:
        answers = [pair async for pair in client.categorize_stream(images(120))]

    assert sizes(answers) == [(n, n) for n in range(1, 121)]
    assert len(servicer.received) < 2 * 120


async def test_a_caller_without_quota_sends_nothing_until_there_is_some() -> None:
    """QUOTA_EXCEEDED says when: until then nothing more is sent, since all of it would be refused too."""
    refused_until = 0.0

    async def rationed(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        nonlocal refused_until
        async for image in received:
            now = asyncio.get_running_loop().time()
            refused_until = refused_until or now + 0.5
            left_s = refused_until - now
            yield respond(image, status("QUOTA_EXCEEDED", retry_s=left_s + 0.01) if left_s > 0 else None)

    servicer = FakeServicer(stream=rationed)
    async with serving(servicer) as address, AsyncClient(address, retry=QUICK, in_flight=4) as client:
        answers = [pair async for pair in client.categorize_stream(images(40))]

    assert sizes(answers) == [(n, n) for n in range(1, 41)]
    assert len(servicer.received) <= 40 + 4
