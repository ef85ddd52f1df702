"""A stream of images: read at the caller's and the server's pace, answered in the order of arrival.

    inbox ─► next_task ─► [ task task task … at most max_in_flight ] ─► write, in order

Reading waits for a free place, so HTTP/2 flow control reaches the caller and nothing piles up here. When the server
closes, the inbox ends: what was read is answered, what was not read stays with the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Message = TypeVar("Message")
Response = TypeVar("Response")


class Closing:
    """Whether the server is closing; wakes whoever waits for a message when it does."""

    def __init__(self) -> None:
        self._closed = False
        self._wakers: set[Callable[[], object]] = set()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """End every inbox, now and from now on."""
        self._closed = True
        for wake in tuple(self._wakers):
            wake()

    def watch(self, wake: Callable[[], object]) -> None:
        """Call `wake` when closing."""
        self._wakers.add(wake)

    def unwatch(self, wake: Callable[[], object]) -> None:
        """Take `wake` back."""
        self._wakers.discard(wake)


class Inbox(Generic[Message]):
    """The messages of one call, until the caller has sent its last or the server is closing."""

    def __init__(self, read: Callable[[], Awaitable[Message]], end: object, closing: Closing) -> None:
        """`read` gives the next message, or `end` after the last (grpc.aio.EOF)."""
        self._read = read
        self._end = end
        self._closing = closing
        self.cut_off = False
        """Whether the server, and not the caller, ended it."""

    async def next(self) -> Message | None:
        """The next message; None at the end."""
        if self._closing.closed:
            self.cut_off = True
            return None
        reader = asyncio.current_task()
        assert reader is not None
        woken = False

        def wake() -> None:
            nonlocal woken
            woken = True
            reader.cancel()

        self._closing.watch(wake)
        try:
            message = await self._read()
        except asyncio.CancelledError:
            # As asyncio.timeout does it: our own cancellation ends here, anybody else's goes on.
            if not woken or reader.uncancel() > 0:
                raise
            self.cut_off = True
            return None
        finally:
            self._closing.unwatch(wake)
        return None if message is self._end else message


async def answer_in_order(
    next_task: Callable[[], Awaitable[asyncio.Task[Response] | None]],
    write: Callable[[Response], Awaitable[object]],
    *,
    max_in_flight: int,
) -> None:
    """Write the results of tasks in the order in which `next_task` gives them, until it gives None.

    An error of `next_task` is raised after everything that it gave before has been written. Leaving, for whatever
    reason, cancels the tasks that are left.
    """
    places = asyncio.Semaphore(max_in_flight)
    tasks: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            await places.acquire()
            while (task := await next_task()) is not None:
                tasks.put_nowait(task)
                await places.acquire()
        finally:
            tasks.put_nowait(None)

    reader = asyncio.create_task(read())
    current: asyncio.Task[Response] | None = None
    try:
        while (current := await tasks.get()) is not None:
            await write(await current)
            places.release()
        await reader
    finally:
        await _cancel_all([reader, current, *_drained(tasks)])


def _drained(tasks: asyncio.Queue[asyncio.Task[Response] | None]) -> list[asyncio.Task[Response] | None]:
    return [tasks.get_nowait() for _ in range(tasks.qsize())]


async def _cancel_all(tasks: list[asyncio.Task[Response] | asyncio.Task[None] | None]) -> None:
    left = [task for task in tasks if task is not None]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
