"""Pull batching: while the device works on one batch the queue fills, and the next batch is what waits then.

No timer and no knob to tune: under light load an image goes alone at once, under heavy load batches fill themselves.
One thread owns the device, so batches reach it in order. Whoever stops waiting costs nothing: its item leaves the
queue at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class BatchFailed(Exception):
    """The batch that held the item failed; the cause is the device's own error."""


class BatcherClosed(Exception):
    """The batcher takes no more items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What a batch was, for whoever measures. waits_s: how long each of its items had waited."""

    frames: int
    waits_s: tuple[float, ...]
    encode_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Item:
    planes: Planes  # (F, S, S)
    since: float
    done: asyncio.Future[Floats]


class Batcher:
    """Joins the frames of waiting items to batches for `embed`, which takes (B, 1, S, S) and returns (B, D).

    The frames of an item stay together; an item of more than `max_batch` frames is a batch of its own. Leaving the
    context answers everything that waits and then ends the thread.
    """

    def __init__(
        self,
        embed: Callable[[npt.NDArray[np.uint8]], Floats],
        *,
        max_batch: int,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._embed = embed
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._clock = clock
        self._waiting: dict[int, _Item] = {}  # in order of arrival; a dict, because items leave from the middle
        self._arrived = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deepmcat-engine")

    @property
    def depth(self) -> int:
        """The number of items that wait."""
        return len(self._waiting)

    async def embed(self, planes: Planes) -> Floats:
        """The embeddings (F, D) of one item's planes (F, S, S). Raises BatchFailed, BatcherClosed."""
        if self._closed:
            raise BatcherClosed
        item = _Item(planes=planes, since=self._clock(), done=asyncio.get_running_loop().create_future())
        self._waiting[id(item)] = item
        self._arrived.set()
        try:
            return await item.done
        finally:
            self._waiting.pop(id(item), None)

    async def call(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """Run something else in the device's thread, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)

    async def __aenter__(self) -> Self:
        """Start the one consumer."""
        self._consumer = asyncio.create_task(self._consume())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more, answer what waits, end the thread."""
        self._closed = True
        self._arrived.set()
        await self._consumer
        self._thread.shutdown()

    async def _consume(self) -> None:
        while True:
            await self._arrived.wait()
            if batch := self._take():
                await self._answer(batch)
            elif self._closed:
                return
            else:
                self._arrived.clear()

    def _take(self) -> list[_Item]:
        """What waits, up to max_batch frames. Empty only where nothing is left that waits.

        An item is done here where its caller was cancelled and has not run since: it must not use up a place.
        """
        batch: list[_Item] = []
        frames = 0
        for item in tuple(self._waiting.values()):
            frames += 0 if item.done.done() else len(item.planes)
            if batch and frames > self._max_batch:
                break
            del self._waiting[id(item)]
            if not item.done.done():
                batch.append(item)
        return batch

    async def _answer(self, batch: list[_Item]) -> None:
        """Run one batch; whatever happens, every item of it is answered."""
        started = self._clock()
        try:
            embeddings = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
        except Exception as error:  # noqa: BLE001  # handed to every caller of the batch
            for item in batch:
                _fail(item.done, error)
            return
        finally:
            self._report(batch, started)
        ends = np.cumsum([len(item.planes) for item in batch])
        for item, rows in zip(batch, np.split(embeddings, ends[:-1]), strict=True):
            if not item.done.done():
                item.done.set_result(rows)

    def _run(self, batch: list[_Item]) -> Floats:
        images = np.concatenate([item.planes for item in batch])[:, None]  # (B, 1, S, S)
        embeddings = self._embed(images)
        if len(embeddings) != len(images):
            raise ValueError(f"the engine gave {len(embeddings)} embeddings for {len(images)} images")
        return embeddings

    def _report(self, batch: list[_Item], started: float) -> None:
        self._on_batch(
            BatchReport(
                frames=sum(len(item.planes) for item in batch),
                waits_s=tuple(started - item.since for item in batch),
                encode_s=self._clock() - started,
            )
        )


def _fail(done: asyncio.Future[Floats], cause: Exception) -> None:
    """Each caller gets an exception of its own: a shared one would collect the tracebacks of all."""
    if not done.done():
        error = BatchFailed()
        error.__cause__ = cause
        done.set_exception(error)
