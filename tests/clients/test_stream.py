"""CategorizeStream through AsyncClient: order, bounds, and what happens when servers misbehave."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import AsyncClient, Categorization, ClientError, Options
from deepmcat_client.errors import (
    CorruptImage,
    ImageTooLarge,
    NotAnImage,
    ServerBusy,
    ServerError,
    Unavailable,
    UnreadableFile,
)

from .fakes import QUICK, FakeServicer, Received, answer_all, collect, respond, serving, sizes, status


async def test_answers_come_in_order() -> None:
    """Every image gets its own answer, in the order of the images, whatever the ids are."""
    images = [(("any", n), b"x" * n) for n in range(1, 300)]

    answers = await collect(FakeServicer(), images)

    assert [(("any", n), n) for n in range(1, 300)] == sizes(answers)


async def test_a_large_image_is_chunked() -> None:
    """Images over 1 MiB travel in chunks of at most 1 MiB and arrive as they were."""
    servicer = FakeServicer()
    large = bytes(range(256)) * (4096 * 2) + b"end"

    answers = await collect(servicer, [("a", b"small"), ("b", large), ("c", b"small2")])

    assert [("a", 5), ("b", len(large)), ("c", 6)] == sizes(answers)
    assert large == servicer.received[1].image


async def test_the_callers_ids_stay_here(tmp_path: Path) -> None:
    """Neither ids nor file names are sent."""
    servicer = FakeServicer()
    (tmp_path / "Doe_Jane.dcm").write_bytes(b"pixels")

    await collect(servicer, [("Doe^Jane", tmp_path / "Doe_Jane.dcm")])

    assert [received.item_id for received in servicer.received] == ["1"]


async def test_a_bad_image_has_an_error_and_the_others_an_answer() -> None:
    """An image's error is its answer, typed by its reason."""
    answers = await collect(FakeServicer(), [(1, b"ok"), (2, b"corrupt"), (3, b"report"), (4, b"ok")])

    assert [Categorization, CorruptImage, NotAnImage, Categorization] == [type(answer) for _, answer in answers]


async def test_an_unreadable_file_has_an_error_and_the_others_an_answer(tmp_path: Path) -> None:
    """A file that vanishes, is too large or empty is answered here, in its place, without its name in the message."""
    good, large = tmp_path / "good", tmp_path / "large"
    good.write_bytes(b"ok")
    large.write_bytes(b"x" * 11)
    items = [(1, tmp_path / "gone"), (2, good), (3, large), (4, b""), (5, tmp_path / "gone")]

    answers = await collect(FakeServicer(), items, max_image_bytes=10)

    types = [type(answer) for _, answer in answers]
    assert types == [UnreadableFile, Categorization, ImageTooLarge, CorruptImage, UnreadableFile]
    assert "gone" not in str(answers[0][1])


async def test_nothing_to_send_opens_no_call() -> None:
    """An empty iterable has no answers and calls nobody."""
    servicer = FakeServicer()

    assert await collect(servicer, []) == []
    assert servicer.stream_calls == 0


async def test_a_server_that_waits_for_its_answers_to_be_taken_is_no_deadlock() -> None:
    """Writing goes on while answers are read: far more data than flow control lets through in one direction."""

    async def large_answers(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for received in images:
            response = respond(received)
            response.categorization.embedding.data = b"0" * 500_000
            yield response

    images = [(n, b"x" * 700_000) for n in range(60)]
    answers = await asyncio.wait_for(collect(FakeServicer(stream=large_answers), images), 30)

    assert list(range(60)) == [key for key, _ in answers]


async def test_images_are_taken_as_there_is_room() -> None:
    """No more than `in_flight` images are taken from the iterable ahead of the answers that were taken."""
    taken = 0

    def items() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number, b"x"

    async with (
        serving(FakeServicer()) as address,
        AsyncClient(address, in_flight=4) as client,
        aclosing(client.categorize_stream(items())) as answers,
    ):
        async for number, _ in answers:
            await asyncio.sleep(0.001)
            assert taken <= number + 4 + 1


async def test_a_busy_item_is_sent_again_and_keeps_its_place() -> None:
    """SERVER_BUSY for one image is retried on the same call after the wait that the server asks for."""

    async def busy_once(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        refused = False
        async for received in images:
            busy = received.item_id == "2" and not refused
            refused = refused or busy
            yield respond(received, status("SERVER_BUSY", retry_s=0.01) if busy else None)

    servicer = FakeServicer(stream=busy_once)
    answers = await collect(servicer, [(n, b"x" * n) for n in range(1, 6)])

    assert [(n, n) for n in range(1, 6)] == sizes(answers)
    assert [received.item_id for received in servicer.received].count("2") == 2
    assert servicer.stream_calls == 1


async def test_an_item_that_stays_busy_has_that_for_its_answer() -> None:
    """After the last try, and the time of a restart, SERVER_BUSY is the image's answer and the stream goes on."""

    async def always_busy(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for received in images:
            yield respond(received, status("SERVER_BUSY", retry_s=0.001) if received.image == b"no" else None)

    retry = dataclasses.replace(QUICK, restart_s=0.1)
    answers = await collect(FakeServicer(stream=always_busy), [(1, b"no"), (2, b"yes")], retry=retry)

    assert [ServerBusy, Categorization] == [type(answer) for _, answer in answers]


async def test_answers_out_of_order_are_an_error() -> None:
    """A server that breaks the contract is not believed."""

    async def swapped(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for received in images:
            received.item_id = "7"
            yield respond(received)

    with pytest.raises(ServerError, match="out of order"):
        await collect(FakeServicer(stream=swapped), [(1, b"x")])


async def test_a_silent_server_is_given_up() -> None:
    """A call on which nothing moves any more counts as gone, so that a power cut at the server is no hang."""
    from deepmcat_client.call import StreamSettings
    from deepmcat_client.retry import RetryBudget
    from deepmcat_client.stream import ImageStream

    async def silent(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for received in images:
            await asyncio.sleep(60)
            yield respond(received)

    async with serving(FakeServicer(stream=silent)) as address, AsyncClient(address) as client:
        settings = StreamSettings(
            options=pb.CategorizeOptions(),
            retry=QUICK,
            lanes=1,
            in_flight=2,
            max_image_bytes=9,
            images_per_call=9,
            call_s=60,
            stall_s=0.05,
        )
        budget = RetryBudget(100, 1, asyncio.get_running_loop().time)
        stream: ImageStream[int] = ImageStream(client._opened(), budget, settings)
        with pytest.raises(Unavailable, match="silent"):
            async for _ in stream.answers([(1, b"x")]):
                pass


async def test_what_the_iterable_raises_reaches_the_caller() -> None:
    """The answers to what came before are delivered first."""

    def broken() -> Iterator[tuple[int, bytes]]:
        yield 1, b"x"
        raise ZeroDivisionError

    async with serving(FakeServicer()) as address, AsyncClient(address) as client:
        answers = client.categorize_stream(broken())
        first, _ = await anext(answers)
        with pytest.raises(ZeroDivisionError):
            await anext(answers)
    assert first == 1


async def test_images_may_come_asynchronously() -> None:
    """An async iterable is as good as a plain one."""

    async def items() -> AsyncIterator[tuple[int, bytes]]:
        for number in range(1, 4):
            await asyncio.sleep(0)
            yield number, b"x" * number

    assert sizes(await collect(FakeServicer(), items())) == [(1, 1), (2, 2), (3, 3)]


async def test_leaving_early_ends_the_call() -> None:
    """The server sees the call end when the caller leaves the loop."""
    ended = asyncio.Event()

    async def watched(
        servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        context.add_done_callback(lambda _: ended.set())
        async for response in answer_all(servicer, call, images, context):
            yield response

    def endless() -> Iterator[tuple[int, bytes]]:
        while True:
            yield 0, b"x"

    async with serving(FakeServicer(stream=watched)) as address, AsyncClient(address) as client:
        async with aclosing(client.categorize_stream(endless())) as answers:
            async for _ in answers:
                break
        await asyncio.wait_for(ended.wait(), 5)


async def test_options_travel_with_every_image() -> None:
    """Frames, candidates, pin and the time an image may take reach the server."""
    servicer = FakeServicer()
    options = Options(frames=5, top_k=2, want_embedding=True, artifact_id="b")
    async with serving(servicer) as address, AsyncClient(address, timeout_s=1.5) as client:
        assert not [e async for _, e in client.categorize_stream([(1, b"x")], options) if isinstance(e, ClientError)]

    expected = pb.CategorizeOptions(frames=5, top_k=2, want_embedding=True, artifact_id="b", timeout_ms=1500)
    assert expected == servicer.received[0].options
