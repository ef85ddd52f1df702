"""Pull batching: while the device works on one batch the queue fills, and the next batch is what waits then.

No timer and no knob to tune: under light load an image goes alone at once, under heavy load batches fill themselves,
each caller's turn by turn (fairness.py). One thread owns the device, so batches reach it in order. Whoever stops
waiting costs nothing: its item leaves the queue at once, and one whose time is over is not run.

A batch that fails is run again in halves, so that only the item at fault fails:

    batch fails ─► halves ─► one fails: halves of it, and so on to the one item
                       └──► both fail: it is the device, and all fail
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from deepmcat_server.fairness import FairQueue
from deepmcat_server.timing import BatchTimes, Decaying

Planes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class BatchFailed(Exception):
    """The device failed on the item; the cause is the device's own error."""


class BatcherClosed(Exception):
    """The batcher takes no more items."""


class Expired(TimeoutError):
    """The item's time was over before its batch began."""


class NotFinite(Exception):
    """The device gave numbers for the item that are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What a batch was, for whoever measures. waits_s: how long each of its items had waited.

    again: whether it is a part of a batch that failed.
    """

    frames: int
    waits_s: tuple[float, ...]
    encode_s: float
    failed: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Item:
    planes: Planes  # (F, S, S)
    caller: str
    since: float
    deadline: float
    done: asyncio.Future[Floats]


class Batcher:
    """Joins the frames of waiting items to batches for `embed`, which takes (B, 1, S, S) and returns (B, D).

    A row that is not finite fails its item alone. The frames of an item stay together; an item of more than `max_batch`
    frames is a batch of its own. out_of_memory: whether an error of `embed` says that a smaller batch would do: the
    batch is halved then, and later ones are not larger. Leaving the context answers everything that waits and then ends
    the thread. clock: monotonic seconds. thread: the device's, instead of one of its own.
    """

    def __init__(
        self,
        embed: Callable[[npt.NDArray[np.uint8]], Floats],
        *,
        max_batch: int,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        out_of_memory: Callable[[Exception], bool] = lambda error: isinstance(error, MemoryError),
        clock: Callable[[], float] = time.monotonic,
        thread: Executor | None = None,
    ) -> None:
        self.max_batch = max_batch
        """Frames; fewer than at first where the device ran out of memory."""
        self._embed = embed
        self._on_batch = on_batch
        self._out_of_memory = out_of_memory
        self._clock = clock
        self._waiting: FairQueue[_Item] = FairQueue()
        self._at_once: float = math.inf  # frames that the device has memory for
        self._times = BatchTimes()
        self._full = Decaying(0.9)  # frames of batches that left something behind
        self._running: tuple[int, float] | None = None  # frames, since when
        self._arrived = asyncio.Event()
        self._closed = False
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="deepmcat-engine")

    @property
    def depth(self) -> int:
        """The number of items that wait."""
        return len(self._waiting)

    def ahead(self, caller: str, coming: Mapping[str, float]) -> float:
        """The frames that are run before an item of `caller` that came now; coming: as for FairQueue.ahead."""
        return self._waiting.ahead(caller, coming)

    def batch_s(self, frames: float) -> float | None:
        """How long a batch of so many frames takes, by those that ran last; None before the first."""
        return self._times.seconds(frames)

    @property
    def full_batch(self) -> float:
        """The frames of a batch under load: fewer than max_batch where images have several and stay together."""
        return self._full.mean or self.max_batch

    def busy_s(self) -> float:
        """How much longer the batch in progress takes. One that is late is expected to be as late again."""
        if self._running is None:
            return 0.0
        frames, since = self._running
        return abs((self.batch_s(frames) or 0.0) - (self._clock() - since))

    async def embed(self, planes: Planes, *, caller: str = "", deadline: float = math.inf) -> Floats:
        """The embeddings (F, D) of one item's planes (F, S, S). Raises BatchFailed, BatcherClosed, Expired.

        deadline: by the clock; after it nobody needs the answer.
        """
        if self._closed:
            raise BatcherClosed
        done: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        item = _Item(planes=planes, caller=caller, since=self._clock(), deadline=deadline, done=done)
        self._waiting.add(item, caller, len(planes))
        self._arrived.set()
        try:
            return await item.done
        finally:
            self._waiting.discard(item, caller)

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
        frames, now = 0, self._clock()
        while (item := self._waiting.first()) is not None:
            if not _still_waits(item, now):
                self._waiting.discard(item, item.caller)
                continue
            if batch and frames + len(item.planes) > self.max_batch:
                self._full.add(frames)
                break
            frames += len(item.planes)
            batch.append(item)
            self._waiting.serve(item, item.caller)
        return batch

    async def _answer(self, batch: list[_Item]) -> None:
        """Run one batch; whatever happens, every item of it is answered."""
        error = await self._run(batch)
        if error is not None:
            await self._find_fault(batch, error, device_works=False)

    async def _find_fault(self, batch: list[_Item], error: Exception, *, device_works: bool) -> None:
        """Answer a batch that failed, by halves. No item is run more than 1 + log2 of the batch's number of times."""
        if len(batch) == 1:
            _fail(batch[0].done, error)
            return
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        errors = [await self._run(half, again=True) for half in halves]
        device_works = device_works or None in errors
        for half, error_of_half in zip(halves, errors, strict=True):
            if error_of_half is None:
                continue
            if device_works:
                await self._find_fault(half, error_of_half, device_works=True)
            else:
                for item in half:
                    _fail(item.done, error_of_half)

    async def _run(self, batch: list[_Item], *, again: bool = False) -> Exception | None:
        """Run a batch, in parts where memory is short, and answer it; or the error that it failed with."""
        while True:
            if again:
                now = self._clock()
                batch = [item for item in batch if _still_waits(item, now)]
            if not batch:
                return None
            try:
                embeddings = await self._timed(batch, again=again)
            except Exception as error:  # noqa: BLE001  # handed to every caller that it concerns
                if self._out_of_memory(error) and self._shrink(batch):
                    again = True
                    continue
                return error
            _share_out(batch, embeddings)
            return None

    def _shrink(self, batch: list[_Item]) -> bool:
        """Run fewer frames at once from now on; false where there is no fewer."""
        frames = int(min(sum(len(item.planes) for item in batch), self._at_once))
        if frames == 1:
            return False
        self._at_once = frames // 2
        self._full = Decaying(0.9)
        self.max_batch = min(self.max_batch, frames // 2)
        return True

    async def _timed(self, batch: list[_Item], *, again: bool) -> Floats:
        """Run a batch in the device's thread, and report and remember how long it took."""
        frames = sum(len(item.planes) for item in batch)
        started, failed = self._clock(), True
        self._running = frames, started
        try:
            embeddings = await asyncio.get_running_loop().run_in_executor(self._thread, self._on_device, batch)
            failed = False
        finally:
            self._running = None
            encode_s = self._clock() - started
            if not failed:
                self._times.add(frames, encode_s)
            waits_s = () if again else tuple(started - item.since for item in batch)
            self._on_batch(BatchReport(frames=frames, waits_s=waits_s, encode_s=encode_s, failed=failed, again=again))
        return embeddings

    def _on_device(self, batch: list[_Item]) -> Floats:
        images = np.concatenate([item.planes for item in batch])[:, None]  # (B, 1, S, S)
        at_once = int(min(self._at_once, len(images)))
        parts = [self._embed(images[start : start + at_once]) for start in range(0, len(images), at_once)]
        embeddings = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if len(embeddings) != len(images):
            raise ValueError(f"the engine gave {len(embeddings)} embeddings for {len(images)} images")
        return embeddings


def _still_waits(item: _Item, now: float) -> bool:
    """Whether anybody needs the answer. One whose time is over is told so."""
    if item.deadline <= now and not item.done.done():
        item.done.set_exception(Expired())
    return not item.done.done()


def _share_out(batch: list[_Item], embeddings: Floats) -> None:
    """To each item its rows."""
    finite: npt.NDArray[np.bool_] = np.isfinite(embeddings).all(axis=1)  # type: ignore[assignment]  # (B,)
    end = 0
    for item in batch:
        start, end = end, end + len(item.planes)
        if not finite[start:end].all():
            _fail(item.done, NotFinite())
        elif not item.done.done():
            item.done.set_result(embeddings[start:end])


def _fail(done: asyncio.Future[Floats], cause: Exception) -> None:
    """Each caller gets an exception of its own: a shared one would collect the tracebacks of all."""
    if not done.done():
        error = BatchFailed()
        error.__cause__ = cause
        done.set_exception(error)
