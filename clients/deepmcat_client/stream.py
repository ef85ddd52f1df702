"""Many images on one call: answers in order, a bounded number in flight, and what has no answer sent again.

    items ──feeder──► unanswered ──writer──► call ──reader──► answers ──► caller, in the order of items
                          ▲                                     │
                          └── sent again: busy, or a new call ──┘

Writing and reading run side by side, because a server that applies flow control stops reading while nobody takes its
answers. A file is read when its turn to be sent has come, so that one is in memory, not all that are in flight.
The caller's own ids stay here; on the wire an image is a number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import wire
from deepmcat_client.errors import ClientError, ImageError, ServerError, TryAgain, Unavailable
from deepmcat_client.requests import Source, load
from deepmcat_client.results import Categorization
from deepmcat_client.retry import RetryPolicy
from deepmcat_client.status import from_rpc

Key = TypeVar("Key")
T = TypeVar("T")
Answer = Categorization | ClientError

EOF: Any = vars(grpc.aio)["EOF"]  # the type stubs of grpc lack it
FAREWELL_S = 5.0  # how long the server has to end the call after the last answer


class _Ended(Exception):
    """The server ended the call without an error."""


@dataclass(slots=True, eq=False)
class _Item(Generic[Key]):
    """One image on its way. failures: how often the server sent it back."""

    key: Key
    source: Source
    wire_id: str
    answer: asyncio.Future[Answer]
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a stream behaves. stall_s: with images unanswered and nothing moving for so long, the server is gone."""

    address: str
    options: pb.CategorizeOptions
    retry: RetryPolicy
    in_flight: int
    max_image_bytes: int
    stall_s: float


@dataclass(slots=True, eq=False)
class ImageStream(Generic[Key]):
    """One pass over one iterable of images. `open_call` opens a CategorizeStream call."""

    open_call: Callable[[], Any]
    settings: StreamSettings
    _slots: asyncio.Semaphore = field(init=False)
    _order: asyncio.Queue[_Item[Key] | None] = field(init=False, default_factory=asyncio.Queue)
    _unanswered: deque[_Item[Key]] = field(init=False, default_factory=deque)  # on the wire's side, in its order
    _outbox: deque[_Item[Key]] = field(init=False, default_factory=deque)  # those that this call has yet to send
    _changed: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _all_fed: bool = field(init=False, default=False)
    _sent_back: int = field(init=False, default=0)  # waiting until the server has room for them
    _heard: int = field(init=False, default=0)  # answers of the server, those to send an image again included
    _moved_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """Bound what is in flight."""
        self._slots = asyncio.Semaphore(self.settings.in_flight)

    async def answers(
        self, items: Iterable[tuple[Key, Source]] | AsyncIterable[tuple[Key, Source]]
    ) -> AsyncGenerator[tuple[Key, Answer], None]:
        """The answers in the order of `items`. Raises ClientError when the call fails for good."""
        feeder = asyncio.create_task(self._feed(items))
        conversation = asyncio.create_task(self._converse())
        try:
            while (item := await self._order.get()) is not None:
                waited: tuple[asyncio.Future[Any], ...] = (item.answer, conversation)
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not item.answer.done():
                    conversation.result()  # has failed, and raises why
                yield item.key, item.answer.result()
                self._slots.release()
            await feeder  # raises what the caller's iterable raised
            await asyncio.wait({conversation}, timeout=FAREWELL_S)
        finally:
            feeder.cancel()
            conversation.cancel()
            await asyncio.gather(feeder, conversation, return_exceptions=True)

    async def _feed(self, items: Iterable[tuple[Key, Source]] | AsyncIterable[tuple[Key, Source]]) -> None:
        pulled = items.__aiter__() if isinstance(items, AsyncIterable) else _in_thread(items)
        number = 0
        try:
            await self._slots.acquire()
            async for key, source in pulled:
                number += 1
                item = _Item(key, source, str(number), asyncio.get_running_loop().create_future())
                self._order.put_nowait(item)
                self._enqueue(item)
                await self._slots.acquire()
        finally:
            self._all_fed = True
            self._order.put_nowait(None)
            self._changed.set()

    def _enqueue(self, item: _Item[Key]) -> None:
        self._unanswered.append(item)
        self._outbox.append(item)
        self._move()

    def _move(self) -> None:
        self._moved_at = asyncio.get_running_loop().time()
        self._changed.set()

    async def _converse(self) -> None:
        """One call after another until everything is answered. Raises ClientError when trying again is no use."""
        now = asyncio.get_running_loop().time
        failures, first_failed_at = 0, 0.0
        while await self._has_work():
            heard = self._heard
            error = await self._one_call()
            if error is None:
                continue
            failures = failures + 1 if self._heard == heard else 1
            first_failed_at = now() if failures == 1 else first_failed_at
            gone_s = now() - first_failed_at if self._heard else None
            delay_s = self.settings.retry.delay_s(error, failures, gone_s=gone_s)
            if delay_s is None:
                raise error
            await asyncio.sleep(delay_s)

    async def _has_work(self) -> bool:
        while not self._unanswered:
            if self._finished():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def _finished(self) -> bool:
        return self._all_fed and not self._unanswered and not self._sent_back

    async def _one_call(self) -> ClientError | None:
        """Send and receive on one call until it ends. None: nothing is left that it should have answered."""
        self._outbox = deque(self._unanswered)
        self._move()
        call = self.open_call()
        reader, writer = asyncio.create_task(self._read(call)), asyncio.create_task(self._write(call))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            call.cancel()
            reader.cancel()
            writer.cancel()
            ends = await asyncio.gather(reader, writer, return_exceptions=True)
        error = self._translate(ends[0])
        if isinstance(ends[1], Exception):  # the writer leaves call errors to the reader: this is something else
            raise ends[1]
        return error if self._unanswered else None

    def _translate(self, end: BaseException | None) -> ClientError:
        if isinstance(end, ClientError):
            return end
        if isinstance(end, grpc.aio.AioRpcError) and not _overwritten(end):
            return from_rpc(end, self.settings.address)
        if end is None or isinstance(end, grpc.aio.AioRpcError | _Ended | asyncio.CancelledError):
            return Unavailable(f"the server at {self.settings.address} ended the stream with images unanswered")
        raise end

    async def _write(self, call: Any) -> None:
        try:
            while not self._finished():
                if self._outbox:
                    await self._send(call, self._outbox.popleft())
                    continue
                self._changed.clear()
                await self._changed.wait()
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; the reader has its status

    async def _send(self, call: Any, item: _Item[Key]) -> None:
        try:
            image = await asyncio.to_thread(load, item.source, self.settings.max_image_bytes)
        except ImageError as error:
            self._unanswered.remove(item)
            self._answer(item, error)
            return
        for message in wire.stream_requests(item.wire_id, image, self.settings.options):
            await call.write(message)
            self._moved_at = asyncio.get_running_loop().time()

    async def _read(self, call: Any) -> None:
        while True:
            message = await self._next_message(call)
            if message is EOF:
                raise _Ended
            if not self._unanswered or message.item_id != self._unanswered[0].wire_id:
                raise ServerError("the server answered out of order, which deepmcat.v1 does not allow")
            self._receive(self._unanswered.popleft(), wire.stream_answer(message))

    async def _next_message(self, call: Any) -> Any:
        read = asyncio.ensure_future(call.read())
        while not (await asyncio.wait({read}, timeout=self.settings.stall_s))[0]:
            idle_s = asyncio.get_running_loop().time() - self._moved_at
            if self._unanswered and idle_s >= self.settings.stall_s:
                raise Unavailable(f"the server at {self.settings.address} was silent for {idle_s:.0f} seconds")
        return read.result()

    def _receive(self, item: _Item[Key], answer: Answer) -> None:
        self._heard += 1
        if isinstance(answer, TryAgain):
            item.failures += 1
            delay_s = self.settings.retry.delay_s(answer, item.failures)
            if delay_s is not None:
                self._sent_back += 1
                asyncio.get_running_loop().call_later(delay_s, self._send_again, item)
                return
        self._answer(item, answer)

    def _send_again(self, item: _Item[Key]) -> None:
        self._sent_back -= 1
        self._enqueue(item)

    def _answer(self, item: _Item[Key], answer: Answer) -> None:
        item.answer.set_result(answer)
        self._move()


def _overwritten(error: grpc.aio.AioRpcError) -> bool:
    """Whether a write that failed as the call ended has replaced the server's status (grpc issue 36066)."""
    return error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata()


async def _in_thread(items: Iterable[T]) -> AsyncIterator[T]:
    """Iterate on one thread beside the loop: the caller's generator may walk a slow disk, or call us."""
    loop, end, iterator = asyncio.get_running_loop(), object(), iter(items)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deepmcat-items")
    try:
        while (item := await loop.run_in_executor(executor, next, iterator, end)) is not end:
            yield item  # type: ignore[misc]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
