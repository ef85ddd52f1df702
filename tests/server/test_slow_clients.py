"""Callers that do not read, do not send, or go without a word: nobody else notices, and nothing of theirs stays."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from PIL import Image as PillowImage

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc

FRAMES = 40  # of an image: each has an assignment, so that few answers fill what holds them on their way
MESSAGES = 100  # at least twice as many as flow-control windows hold answers
UPLOAD_BYTES = 900_000


def stub_of(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.CategorizationServiceStub(channel)


def own_connection(served: Any) -> grpc.aio.Channel:
    """A connection that shares nothing with others of this process."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]  # windows stay as they are
    return grpc.aio.insecure_channel(str(served.running.listen), options=options)


def many_frames() -> bytes:
    """A small TIFF of many pages."""
    pages = [PillowImage.new("L", (16, 16), color=4 * page) for page in range(FRAMES)]
    file = io.BytesIO()
    pages[0].save(file, format="TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def announced(size_bytes: int) -> pb.CategorizeStreamRequest:
    image = pb.Image(chunked=pb.ChunkedContent(size_bytes=size_bytes))
    return pb.CategorizeStreamRequest(item=pb.CategorizeRequest(image=image))


def nothing_inside(served: Any) -> Callable[[], bool]:
    admission = served.running.admission
    return lambda: (admission.images, admission.size_bytes, admission.frames) == (0, 0, 0)


async def test_a_caller_that_does_not_read_is_held_back(serving, pngs, request_of):
    """It stops its own stream and nobody else's, nothing of it piles up, and later it gets every answer in order."""
    image = many_frames()
    messages = [pb.CategorizeStreamRequest(item=request_of(image, str(n), frames=FRAMES)) for n in range(MESSAGES)]

    async def write(stream: Any) -> None:
        for message in messages:
            await stream.write(message)
        await stream.done_writing()

    async with serving(max_stream_in_flight=8) as served, own_connection(served) as channel:
        stream = stub_of(channel).CategorizeStream()
        writer, other = asyncio.create_task(write(stream)), served.stub.CategorizeStream()
        taken, before, others = 0, -1, 0
        while taken != before or not taken:  # until calls of others go by, and no image more of it is answered
            before = taken
            for png in pngs * 2:
                await other.write(pb.CategorizeStreamRequest(item=request_of(png)))
                assert (await other.read()).WhichOneof("result") == "categorization"
                others += 1
                assert served.running.admission.images <= 8 + 1
            taken = round(served.scraped["deepmcat_images_total result=ok"]) - others
        answers = [await stream.read() for _ in messages]
        await writer

    assert taken < MESSAGES / 2
    assert [answer.item_id for answer in answers] == [str(n) for n in range(MESSAGES)]
    assert {len(answer.categorization.frames) for answer in answers} == {FRAMES}


@pytest.mark.parametrize("vanish", ["cancelled", "connection closed"])
async def test_an_upload_whose_caller_goes_gives_its_room_back(serving, pngs, until, vanish):
    """Another upload, for which there was no room beside it, is answered as soon as the first one's caller has gone."""
    png = pngs[2] + bytes(UPLOAD_BYTES - len(pngs[2]))
    async with serving(max_pending_bytes=2_000_000) as served, own_connection(served) as channel:
        going = stub_of(channel).CategorizeStream()
        await going.write(announced(UPLOAD_BYTES))
        await going.write(pb.CategorizeStreamRequest(chunk=png[: UPLOAD_BYTES // 2]))
        await until(lambda: served.running.admission.size_bytes == UPLOAD_BYTES)
        staying = served.stub.CategorizeStream()
        await staying.write(announced(UPLOAD_BYTES))
        if vanish == "cancelled":
            going.cancel()
        else:
            await channel.close(grace=None)
        await staying.write(pb.CategorizeStreamRequest(chunk=png))
        answer = await staying.read()
        await staying.done_writing()
        assert await staying.code() is grpc.StatusCode.OK
        await until(nothing_inside(served))

    assert answer.categorization.assignment.cluster_id == 2


async def test_images_of_a_closed_connection_leave_the_queue(serving, pngs, request_of, until):
    """What waits for the encoder when its caller's connection goes is never encoded, and its bytes are given back."""
    async with serving() as served, own_connection(served) as channel:
        served.engine.free.clear()
        stream = stub_of(channel).CategorizeStream()
        for png in (*pngs, pngs[0]):
            await stream.write(pb.CategorizeStreamRequest(item=request_of(png)))
        await until(lambda: served.running.admission.images == 5 and served.engine.entered.is_set())
        await channel.close(grace=None)
        await until(nothing_inside(served))
        served.engine.free.set()
        answer = await served.stub.Categorize(request_of(pngs[3]))

    assert answer.categorization.assignment.cluster_id == 3
    assert served.engine.batches[1:] == [1], "an image was encoded for a caller that had gone"


async def test_one_caller_does_not_take_every_stream(serving, until):
    """Streams that a caller opens and leaves idle are four fifths of all at most; what is left is for others."""
    async with serving(max_streams=10) as served:
        idle = [served.stub.CategorizeStream() for _ in range(9)]
        await until(lambda: any(stream.done() for stream in idle))
        [refused] = [stream for stream in idle if stream.done()]
        code = await refused.code()
        details = Status.FromString(dict(await refused.trailing_metadata())["grpc-status-details-bin"]).details
        open_ = [stream for stream in idle if not stream.done()]
        for stream in idle:
            stream.cancel()

    info = ErrorInfo()
    assert details[0].Unpack(info)
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert len(open_) == 8
