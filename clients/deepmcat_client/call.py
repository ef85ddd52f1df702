"""One call of CategorizeStream: images go out, answers come in, and what has none when it ends is left to the next.

Writing and reading run side by side, because a server that applies flow control stops reading while nobody takes its
answers. A file is read when its turn to be sent has come, so that one is in memory, not all that are in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import wire
from deepmcat_client.connections import Connection
from deepmcat_client.errors import ClientError, DeadlineExceeded, ImageError, ServerError, TryAgain, Unavailable
from deepmcat_client.outbox import Answer, Item, Outbox
from deepmcat_client.requests import load
from deepmcat_client.retry import RetryPolicy
from deepmcat_client.status import from_rpc

Key = TypeVar("Key")

EOF: Any = vars(grpc.aio)["EOF"]  # the type stubs of grpc lack it


class _Ended(Exception):
    """The server ended the call without an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a stream behaves.

    lanes: calls at a time. in_flight: images taken and not yet given back. images_per_call, call_s: after what a call
    is ended and the next begun. stall_s: with images unanswered and nothing moving for so long, the server is gone.
    """

    options: pb.CategorizeOptions
    retry: RetryPolicy
    lanes: int
    in_flight: int
    max_image_bytes: int
    images_per_call: int
    call_s: float
    stall_s: float


class StreamCall(Generic[Key]):
    """A call through `connection`. unanswered: what it has sent, in order, and has no answer; heard: its answers."""

    def __init__(self, connection: Connection, outbox: Outbox[Key], settings: StreamSettings) -> None:
        self.unanswered: deque[Item[Key]] = deque()
        self.heard = 0
        self._connection = connection
        self._outbox = outbox
        self._settings = settings
        self._sent = 0
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self._ends_at = self._moved_at + settings.call_s

    async def run(self, first: Item[Key], metadata: Any) -> ClientError | None:
        """Send and receive until it ends. None: it has left nothing without an answer."""
        self.unanswered.append(first)
        deadline_s = self._settings.call_s + self._settings.stall_s
        rpc = self._connection.stub.CategorizeStream(timeout=deadline_s, metadata=metadata)
        reader, writer = asyncio.create_task(self._read(rpc)), asyncio.create_task(self._write(rpc, first))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            rpc.cancel()
            reader.cancel()
            writer.cancel()
            ends = await asyncio.gather(reader, writer, return_exceptions=True)
        error = self._translate(ends[0])
        if isinstance(ends[1], Exception):  # the writer leaves call errors to the reader: this is something else
            raise ends[1]
        return error if self.unanswered else None

    def _translate(self, end: BaseException | None) -> ClientError:
        if isinstance(end, ClientError):
            return end
        target = self._connection.target
        if isinstance(end, grpc.aio.AioRpcError) and not _overwritten(end):
            error = from_rpc(end, target)
            # The call's deadline is ours; each image has its own, which the server keeps.
            return Unavailable(str(error)) if isinstance(error, DeadlineExceeded) else error
        if end is None or isinstance(end, grpc.aio.AioRpcError | _Ended | asyncio.CancelledError):
            return Unavailable(f"the server at {target} ended the stream with images unanswered")
        raise end

    async def _write(self, rpc: Any, first: Item[Key]) -> None:
        try:
            item: Item[Key] | None = first
            while item is not None:
                await self._send(rpc, item)
                item = await self._next()
            await rpc.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; the reader has its status

    async def _next(self) -> Item[Key] | None:
        """The next image; None when the call has had its share, or everything is answered."""
        if self._sent >= self._settings.images_per_call:
            return None
        try:
            async with asyncio.timeout_at(self._ends_at):
                item = await self._outbox.take(self._has_room)
        except TimeoutError:
            return None
        if item is not None:
            self.unanswered.append(item)
        return item

    def _has_room(self) -> bool:
        # Rounded up: a window of one is one for each lane.
        return len(self.unanswered) * self._settings.lanes < self._outbox.window.size

    async def _send(self, rpc: Any, item: Item[Key]) -> None:
        self._sent += 1
        self._moved_at = self._loop.time()
        try:
            image = await asyncio.to_thread(load, item.source, self._settings.max_image_bytes)
        except ImageError as error:
            self.unanswered.remove(item)
            self._outbox.settle(item, error)
            return
        for message in wire.stream_requests(str(item.number), image, self._settings.options):
            await rpc.write(message)
            self._moved_at = self._loop.time()

    async def _read(self, rpc: Any) -> None:
        while True:
            message = await self._next_message(rpc)
            if message is EOF:
                raise _Ended
            if not self.unanswered or message.item_id != str(self.unanswered[0].number):
                raise ServerError("the server answered out of order, which deepmcat.v1 does not allow")
            self._moved_at = self._loop.time()
            self.heard += 1
            self._receive(self.unanswered.popleft(), wire.stream_answer(message))

    async def _next_message(self, rpc: Any) -> Any:
        stall_s = self._settings.stall_s
        read = asyncio.ensure_future(rpc.read())
        read.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # looked at, also if nobody waits
        while not (await asyncio.wait({read}, timeout=stall_s))[0]:
            idle_s = self._loop.time() - self._moved_at
            if self.unanswered and idle_s >= stall_s:
                raise Unavailable(f"the server at {self._connection.target} was silent for {idle_s:.0f} seconds")
        return read.result()

    def _receive(self, item: Item[Key], answer: Answer) -> None:
        self._outbox.heard_of(answer)
        delay_s = self._again_after_s(item, answer) if isinstance(answer, TryAgain) else None
        if delay_s is None:
            self._outbox.settle(item, answer)
        else:
            self._outbox.put_back_later(item, delay_s)

    def _again_after_s(self, item: Item[Key], refusal: TryAgain) -> float | None:
        now = self._loop.time()
        item.failures += 1
        item.first_failed_at = item.first_failed_at or now
        return self._settings.retry.delay_s(refusal, item.failures, gone_s=now - item.first_failed_at)


def _overwritten(error: grpc.aio.AioRpcError) -> bool:
    """Whether a write that failed as the call ended has replaced the server's status (grpc issue 36066)."""
    return error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata()
