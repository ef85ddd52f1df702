"""CategorizeStream over a real channel: order, bounds, chunks, timeouts, and what ends a stream."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from deepmcat.v1 import categorization_pb2 as pb


def item(request: pb.CategorizeRequest) -> pb.CategorizeStreamRequest:
    """One whole image of a stream."""
    return pb.CategorizeStreamRequest(item=request)


def announced(size: int, item_id: str = "", **options: int) -> pb.CategorizeStreamRequest:
    """The announcement of a chunked image."""
    image = pb.Image(chunked=pb.ChunkedContent(size_bytes=size))
    return item(pb.CategorizeRequest(item_id=item_id, image=image, options=pb.CategorizeOptions(**options)))


def chunk(data: bytes) -> pb.CategorizeStreamRequest:
    """A chunk."""
    return pb.CategorizeStreamRequest(chunk=data)


def reason(response: pb.CategorizeStreamResponse) -> str:
    """The reason of an error answer, "" of a good one."""
    if response.WhichOneof("result") == "categorization":
        return ""
    info = ErrorInfo()
    assert response.error.details[0].Unpack(info)
    return info.reason


async def test_answers_come_in_order_of_arrival(serving, pngs, request_of, answers_of):
    """A hundred images, more than may be in flight, get their own answers in the order in which they were sent."""
    async with serving(max_stream_in_flight=5, max_batch=4) as served:
        messages = [item(request_of(pngs[i % 4], str(i))) for i in range(100)]
        call = served.stub.CategorizeStream(iter(messages))
        answers = await answers_of(call)

    assert await call.code() is grpc.StatusCode.OK
    assert [a.item_id for a in answers] == [str(i) for i in range(100)]
    assert [a.categorization.assignment.cluster_id for a in answers] == [i % 4 for i in range(100)]
    assert sum(served.engine.batches) == 100
    assert served.scraped["deepmcat_images_total result=ok"] == 100


async def test_a_bad_image_never_ends_a_stream(serving, pngs, request_of, answers_of):
    """Each image that cannot be answered has its error in its place; the others are unharmed."""
    async with serving() as served:
        messages = [
            item(request_of(pngs[0], "good")),
            item(request_of(pngs[1][:60], "cut off")),
            item(pb.CategorizeRequest(item_id="empty")),
            item(request_of(pngs[1], "x" * 65)),
            item(request_of(pngs[1], "pinned", artifact_id="1" * 64)),
            item(request_of(pngs[3], "good too")),
        ]
        call = served.stub.CategorizeStream(iter(messages))
        answers = await answers_of(call)

    assert await call.code() is grpc.StatusCode.OK
    assert [a.item_id for a in answers] == ["good", "cut off", "empty", "x" * 65, "pinned", "good too"]
    reasons = ["", "CORRUPT_IMAGE", "INVALID_REQUEST", "INVALID_REQUEST", "ARTIFACT_NOT_FOUND", ""]
    assert [reason(a) for a in answers] == reasons
    assert answers[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert served.scraped["deepmcat_images_total result=invalid_request"] == 2


async def test_chunked_image_is_the_file_it_was(serving, pngs, request_of, answers_of):
    """An image in chunks gets the answer that it gets whole, between images that came whole."""
    png = pngs[2]
    async with serving() as served:
        messages = [
            item(request_of(pngs[0], "before")),
            announced(len(png), "chunked"),
            *(chunk(png[i : i + 50]) for i in range(0, len(png), 50)),
            item(request_of(pngs[1], "after")),
        ]
        call = served.stub.CategorizeStream(iter(messages))
        answers = await answers_of(call)

    assert await call.code() is grpc.StatusCode.OK
    clusters = {a.item_id: a.categorization.assignment.cluster_id for a in answers}
    assert clusters == {"before": 0, "chunked": 2, "after": 1}


async def test_oversized_chunked_image_is_read_past(serving, pngs, request_of, answers_of):
    """An announcement over the limit gets IMAGE_TOO_LARGE, its chunks are dropped, and the stream goes on."""
    async with serving(max_image_bytes=1000) as served:
        messages = [
            announced(1001, "large"),
            chunk(b"x" * 1000),
            chunk(b"x"),
            item(request_of(pngs[1], "after")),
        ]
        call = served.stub.CategorizeStream(iter(messages))
        answers = await answers_of(call)

    assert await call.code() is grpc.StatusCode.OK
    assert [(a.item_id, reason(a)) for a in answers] == [("large", "IMAGE_TOO_LARGE"), ("after", "")]


@pytest.mark.parametrize(
    "broken",
    [
        [chunk(b"x")],
        [pb.CategorizeStreamRequest()],
        [announced(10), chunk(b"x" * 11)],
        [announced(10), chunk(b"")],
        [announced(10), announced(10)],
        [announced(10), chunk(b"x" * 9)],
        [announced(2**21), chunk(b"x" * (2**20 + 1))],
    ],
    ids=["unannounced", "empty", "too much", "no bytes", "another image", "too little", "long chunk"],
)
async def test_broken_protocol_ends_the_call(serving, pngs, request_of, broken, answers_of):
    """A stream that breaks the rules of chunks answers what came before, then ends with INVALID_REQUEST."""
    async with serving() as served:
        call = served.stub.CategorizeStream(iter([item(request_of(pngs[0], "before")), *broken]))
        answers = await answers_of(call)

        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [(a.item_id, reason(a)) for a in answers] == [("before", "")]
        assert served.running.admission.images == 0


async def test_stalled_upload_ends_the_call(serving):
    """An announced image whose chunks stop coming does not keep its room."""
    async with serving(chunk_timeout_s=0.1) as served:
        call = served.stub.CategorizeStream()
        await call.write(announced(10))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert served.running.admission.images == 0


async def test_trickling_upload_runs_out_of_time(serving, pngs, request_of, until):
    """An upload has its image's time, from announcement to answer: one byte now and then does not keep its room."""
    async with serving() as served:
        call = served.stub.CategorizeStream()
        await call.write(announced(100, "slow", timeout_ms=200))
        await call.write(chunk(b"x"))
        await until(lambda: served.running.admission.images == 1)
        await asyncio.sleep(0.3)
        await call.write(chunk(b"x"))
        await call.write(chunk(b"x"))
        slow = await call.read()
        await until(lambda: served.running.admission.images == 0)
        await call.write(chunk(b"x" * 97))
        await call.write(item(request_of(pngs[2], "after")))
        after = await call.read()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK

    assert (slow.item_id, reason(slow)) == ("slow", "SERVER_BUSY")
    assert (after.item_id, reason(after)) == ("after", "")


async def test_uploads_leave_room_for_whole_images(serving, pngs, request_of, until):
    """Announced images that do not come have half of the room at most; whole images get in beside them."""
    async with serving(max_pending_bytes=100_000) as served:
        slow, next_one = served.stub.CategorizeStream(), served.stub.CategorizeStream()
        await slow.write(announced(50_000))
        await until(lambda: served.running.admission.images == 1)
        await next_one.write(announced(len(pngs[3])))
        unary = await served.stub.Categorize(request_of(pngs[1]))
        call = served.stub.CategorizeStream()
        await call.write(item(request_of(pngs[2], timeout_ms=5000)))
        streamed = await call.read()
        inside = served.running.admission.images

        slow.cancel()  # its place goes to the next
        await next_one.write(chunk(pngs[3]))
        uploaded = await next_one.read()

    assert inside == 1
    assert uploaded.categorization.assignment.cluster_id == 3
    assert unary.categorization.assignment.cluster_id == 1
    assert streamed.categorization.assignment.cluster_id == 2


async def test_item_that_runs_out_of_time(serving, pngs, request_of, until):
    """An image whose timeout passes gets SERVER_BUSY with a delay as its answer; later ones are answered."""
    async with serving() as served:
        served.engine.free.clear()
        call = served.stub.CategorizeStream()
        await call.write(item(request_of(pngs[0], "held")))
        await until(served.engine.entered.is_set)
        await call.write(item(request_of(pngs[1], "hasty", timeout_ms=50)))
        await call.write(item(request_of(pngs[2], "patient")))
        await until(lambda: served.scraped["deepmcat_images_total result=server_busy"] == 1)
        served.engine.free.set()
        await call.done_writing()
        answers = [response async for response in call]

    assert [(a.item_id, reason(a)) for a in answers] == [("held", ""), ("hasty", "SERVER_BUSY"), ("patient", "")]
    retry = RetryInfo()
    assert answers[1].error.details[1].Unpack(retry)
    assert answers[1].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert served.engine.batches == [1, 1]


async def test_full_server_holds_streams_back(serving, pngs, request_of, answers_of):
    """In a stream fullness is flow control: with room for one image, all are answered and none refused."""
    async with serving(max_queue=1) as served:
        messages = [[item(request_of(pngs[i % 4], f"{s}-{i}")) for i in range(10)] for s in range(3)]
        calls = [served.stub.CategorizeStream(iter(sent)) for sent in messages]
        finished = await asyncio.gather(*map(answers_of, calls))

    for s, answers in enumerate(finished):
        assert await calls[s].code() is grpc.StatusCode.OK
        assert [(a.item_id, reason(a)) for a in answers] == [(f"{s}-{i}", "") for i in range(10)]
    assert set(served.engine.batches) == {1}


async def test_no_more_in_flight_than_allowed(serving, pngs, request_of, until, answers_of):
    """A stream has at most max_stream_in_flight images inside; the rest waits with the caller."""
    async with serving(max_stream_in_flight=3) as served:
        served.engine.free.clear()
        messages = [item(request_of(pngs[0], str(i))) for i in range(20)]
        conversation = asyncio.ensure_future(answers_of(served.stub.CategorizeStream(iter(messages))))
        await until(lambda: served.running.admission.images == 3)
        await asyncio.sleep(0.1)
        inside = served.running.admission.images
        served.engine.free.set()
        answers = await conversation

    assert inside == 3
    assert len(answers) == 20


async def test_vanished_caller_leaves_nothing_behind(serving, pngs, request_of, until):
    """When a caller cancels its stream, what it had waiting leaves the queue, and its room is free again."""
    async with serving() as served:
        served.engine.free.clear()
        call = served.stub.CategorizeStream()
        for _ in range(5):
            await call.write(item(request_of(pngs[0])))
        await until(lambda: served.running.admission.images == 5 and served.engine.entered.is_set())
        call.cancel()
        await until(lambda: served.running.admission.images == 0)
        assert served.running.batcher.depth == 0
        served.engine.free.set()
        response = await served.stub.Categorize(request_of(pngs[3]))

    assert response.categorization.assignment.cluster_id == 3
    assert served.engine.batches[1:] == [1]


async def test_failed_batch_is_an_answer(serving, pngs, request_of):
    """In a stream an encoder failure is the answer of each image in the batch, and the stream lives."""
    async with serving() as served:
        call = served.stub.CategorizeStream()
        served.engine.failure = MemoryError()
        await call.write(item(request_of(pngs[0], "unlucky")))
        unlucky = await call.read()
        served.engine.failure = None
        await call.write(item(request_of(pngs[1], "lucky")))
        lucky = await call.read()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK

    assert (reason(unlucky), reason(lucky)) == ("INFERENCE_FAILED", "")
