"""An event loop on a thread of its own, so that code without asyncio can use what is written for it.

All clients of a process share one: two loops that both run grpc.aio in one process wake each other up for nothing
(grpc issue 25364), and a thread each would be a waste besides.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class LoopThread:
    """The loop and its thread. `acquire` and `release` in pairs; the last release ends the thread."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _shared: ClassVar[LoopThread | None] = None

    def __init__(self) -> None:
        self._users = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deepmcat-client", daemon=True)

    @classmethod
    def acquire(cls) -> LoopThread:
        """The running loop that all share."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
                cls._shared._thread.start()
            cls._shared._users += 1
            return cls._shared

    def release(self) -> None:
        """Say that this user is done."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            type(self)._shared = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; where the wait is interrupted, the work is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Iterate over what is generated on the loop, and close it however the iteration ends."""
        running: set[asyncio.Task[Any]] = set()
        end = object()
        try:
            while (item := self.run(_next(items, end, running))) is not end:
                yield item  # type: ignore[misc]
        finally:
            self.run(_close(items, running))


async def _next(items: AsyncGenerator[T, None], end: object, running: set[asyncio.Task[Any]]) -> T | object:
    task = asyncio.current_task()
    assert task is not None
    running.add(task)
    try:
        return await anext(items, end)
    finally:
        running.discard(task)


async def _close(items: AsyncGenerator[Any, None], running: set[asyncio.Task[Any]]) -> None:
    """Close, after a step that an interrupt has left behind: a generator that runs cannot be closed."""
    if running:
        await asyncio.wait(set(running))
    await items.aclose()
