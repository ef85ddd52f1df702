"""Many images on a few calls: answers in order, a bounded number in flight, and what has no answer sent again.

    items ──feeder──► outbox, the oldest first ──► lane: one call after another ──► answers ──► caller, in order
                         ▲                         lane: …            │
                         └── sent again: busy, or its call has ended ─┘

Each lane has one call open at a time. A call ends politely after so many images or seconds and the lane opens the next,
through the connection with the fewest: servers that have come since get their share.
The caller's own ids stay here; on the wire an image is a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Generic, TypeVar

from deepmcat_client.call import StreamCall, StreamSettings
from deepmcat_client.connections import Connections
from deepmcat_client.errors import ClientError, TryAgain
from deepmcat_client.feeding import iterate_in_thread
from deepmcat_client.outbox import Answer, Item, Outbox
from deepmcat_client.requests import Source
from deepmcat_client.retry import RetryBudget
from deepmcat_client.window import SendWindow

Key = TypeVar("Key")

FAREWELL_S = 5.0  # how long servers have to end their calls after the last answer


class ImageStream(Generic[Key]):
    """One pass over one iterable of images."""

    def __init__(self, connections: Connections, budget: RetryBudget, settings: StreamSettings) -> None:
        self._connections = connections
        self._budget = budget
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.in_flight)
        self._order: asyncio.Queue[Item[Key] | None] = asyncio.Queue()
        self._outbox = Outbox[Key](SendWindow(settings.in_flight))
        self._heard_before = -1  # of the outbox, when servers were last found to be gone
        self._gone_since = 0.0

    async def answers(
        self, items: Iterable[tuple[Key, Source]] | AsyncIterable[tuple[Key, Source]]
    ) -> AsyncGenerator[tuple[Key, Answer], None]:
        """The answers in the order of `items`. Raises ClientError when trying again is no use."""
        feeder = asyncio.create_task(self._feed(items))
        lanes = [asyncio.create_task(self._lane()) for _ in range(self._settings.lanes)]
        work = asyncio.gather(*lanes)  # fails with the first lane that does
        try:
            while (item := await self._order.get()) is not None:
                waited: tuple[asyncio.Future[object], ...] = (item.answer, work)  # type: ignore[assignment]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not item.answer.done():
                    work.result()  # has failed, and raises why
                yield item.key, item.answer.result()
                self._slots.release()
            await feeder  # raises what the caller's iterable raised
            await asyncio.wait((work,), timeout=FAREWELL_S)
        finally:
            for task in (feeder, *lanes):
                task.cancel()
            await asyncio.gather(feeder, work, *lanes, return_exceptions=True)

    async def _feed(self, items: Iterable[tuple[Key, Source]] | AsyncIterable[tuple[Key, Source]]) -> None:
        pulled = items.__aiter__() if isinstance(items, AsyncIterable) else iterate_in_thread(items)
        number = 0
        try:
            await self._slots.acquire()
            async for key, source in pulled:
                number += 1
                item = Item(number, key, source, asyncio.get_running_loop().create_future())
                self._order.put_nowait(item)
                self._outbox.add(item)
                await self._slots.acquire()
        finally:
            self._outbox.end()
            self._order.put_nowait(None)

    async def _lane(self) -> None:
        """One call after another until everything is answered. Raises ClientError when trying again is no use."""
        failures = 0  # of calls in a row that brought no answer
        while (first := await self._outbox.take()) is not None:
            heard, error = await self._one_call(first)
            failures = 0 if heard else failures
            if error is None:
                continue
            failures += 1
            delay_s = self._settings.retry.delay_s(error, failures, gone_s=self._gone_s())
            if delay_s is None:
                raise error
            await asyncio.sleep(max(delay_s, self._budget.take()))

    async def _one_call(self, first: Item[Key]) -> tuple[int, ClientError | None]:
        """Send and receive on one call until it ends: how many answers it brought, and why it left images without."""
        async with self._connections.lease() as connection:
            call = StreamCall(connection, self._outbox, self._settings)
            try:
                error = await call.run(first, await self._connections.metadata())
            finally:
                for item in call.unanswered:
                    self._outbox.put_back(item)
            if call.heard:
                self._budget.answered(call.heard)
                self._connections.answered(connection)
            if isinstance(error, TryAgain):
                self._connections.failed(connection, error)
            return call.heard, error

    def _gone_s(self) -> float | None:
        """Since when no server answers; None where none ever did."""
        now = asyncio.get_running_loop().time()
        if self._heard_before != self._outbox.heard:
            self._heard_before, self._gone_since = self._outbox.heard, now
        return now - self._gone_since if self._outbox.heard else None
