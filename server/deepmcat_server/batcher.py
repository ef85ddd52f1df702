"""Pull batching: while the device works on one batch the queue fills, and the next batch is what waits then.

No timer and no knob to tune: under light load an image goes alone at once, under heavy load batches fill themselves,
each caller's turn by turn (fairness.py). A batch that is full before its turn, so that nobody could join it, is handed
to the device's thread (device.py) meanwhile: the device never waits for the event loop. Whoever stops waiting costs
nothing: its item leaves the queue at once, and one whose time is over is not run.

A batch that fails is run again in halves, so that only the item at fault fails:

    batch fails ─► halves ─► one fails: halves of it, and so on to the one item
                       └──► both fail: it is the device, and all fail
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from deepmcat_server.device import Device, Floats, Item, Planes, Run
from deepmcat_server.fairness import FairQueue
from deepmcat_server.timing import BatchTimes, Decaying

Argument = TypeVar("Argument")
Result = TypeVar("Result")


LEAD_S = 0.01
"""How long before the end of a batch the next one is handed over: the event loop may be as late."""


TICK_S = 0.001


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
        self._on_batch = on_batch
        self._out_of_memory = out_of_memory
        self._clock = clock
        thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="deepmcat-engine")
        self._device = Device(embed, thread, clock)
        self._waiting: FairQueue[Item] = FairQueue()
        self._times = BatchTimes()
        self._full = Decaying(0.9)  # frames of batches that left something behind
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()  # a batch has ended, or the next one is full
        self._closed = False

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

    def begin_like(self, other: Batcher) -> None:
        """Expect batches to take as long as another's, as long as none has run here."""
        self._times.begin_like(other._times)

    @property
    def full_batch(self) -> float:
        """The frames of a batch under load: fewer than max_batch where images have several and stay together."""
        return self._full.mean or self.max_batch

    def busy_s(self) -> float:
        """How much longer the device is busy with what it was given."""
        return self._device.busy_s(self._expected_s)

    async def embed(self, planes: Planes, *, caller: str = "", deadline: float = math.inf) -> Floats:
        """The embeddings (F, D) of one item's planes (F, S, S). Raises BatchFailed, BatcherClosed, Expired.

        deadline: by the clock; after it nobody needs the answer.
        """
        if self._closed:
            raise BatcherClosed
        done: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        item = Item(planes=planes, caller=caller, since=self._clock(), deadline=deadline, done=done)
        self._waiting.add(item, caller, len(planes))
        self._arrived.set()
        if self._is_full:
            self._changed.set()
        try:
            return await item.done
        finally:
            self._waiting.discard(item, caller)

    async def call(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """Run something else in the device's thread, between batches."""
        return await self._device.call(function, argument)

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
        self._device.close()

    @property
    def _is_full(self) -> bool:
        """Whether nobody who comes now could join the next batch."""
        return len(self._waiting) >= self.max_batch

    def _is_full_of_waiting(self) -> bool:
        """The same where those whom nobody waits for any more have left. All are looked at only where it seems full."""
        if self._is_full:
            now = self._clock()
            for item in [item for item in self._waiting if not _waits(item, now)]:
                self._waiting.discard(item, item.caller)
        return self._is_full

    async def _consume(self) -> None:
        run: Run | None = None
        while run := run or await self._next():
            following = await self._followed(run)
            await self._answer(run)
            run = following
            await asyncio.sleep(0)  # who was answered goes on before the next batch is reported (traced_metrics.py)

    async def _next(self) -> Run | None:
        """A batch that has begun, as soon as anything waits; None where nothing does and nothing will."""
        while True:
            await self._arrived.wait()
            if batch := self._take():
                return self._device.begin(batch)
            if self._closed:
                return None
            self._arrived.clear()

    async def _followed(self, run: Run) -> Run | None:
        """The batch behind one that runs, handed over where it is full shortly before that ends; None where it is not.

        Shortly, because whoever comes after that has to wait for it, though it might be their turn.
        """
        loop, wake = asyncio.get_running_loop(), self._changed.set
        run.outcome.add_done_callback(lambda _: wake())
        while not run.outcome.done():
            early_s = self._device.left_s(run, self._expected_s) - LEAD_S
            if early_s <= 0 and self._is_full_of_waiting() and (batch := self._take()):
                return self._device.begin(batch)
            # In each turn anew, and for a little more: uvloop's timers go off up to a millisecond early.
            timer = loop.call_later(early_s + TICK_S, wake) if early_s > 0 else None
            self._changed.clear()
            await self._changed.wait()
            if timer is not None:
                timer.cancel()
        return None

    def _expected_s(self, frames: int) -> float:
        """Of a batch of so many frames; 0 where nothing is known."""
        return self.batch_s(frames) or 0.0

    def _take(self) -> list[Item]:
        """What waits, up to max_batch frames. Empty only where nothing is left that waits.

        An item is done here where its caller was cancelled and has not run since: it must not use up a place.
        """
        batch: list[Item] = []
        frames, now = 0, self._clock()
        while (item := self._waiting.first()) is not None:
            if not _waits(item, now):
                self._waiting.discard(item, item.caller)
                continue
            if batch and frames + len(item.planes) > self.max_batch:
                self._full.add(frames)
                break
            frames += len(item.planes)
            batch.append(item)
            self._waiting.serve(item, item.caller)
        return batch

    async def _answer(self, run: Run) -> None:
        """Answer a batch; whatever happens, every item of it is answered."""
        error = await self._outcome(run)
        if error is not None:
            await self._find_fault(run.items, error, device_works=False)

    async def _find_fault(self, batch: Sequence[Item], error: Exception, *, device_works: bool) -> None:
        """Answer a batch that failed, by halves. No item is run more than 1 + log2 of the batch's number of times."""
        if len(batch) == 1:
            _fail(batch[0].done, error)
            return
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        errors = [await self._run_again(half) for half in halves]
        device_works = device_works or None in errors
        for half, error_of_half in zip(halves, errors, strict=True):
            if error_of_half is None:
                continue
            if device_works:
                await self._find_fault(half, error_of_half, device_works=True)
            else:
                for item in half:
                    _fail(item.done, error_of_half)

    async def _run_again(self, batch: Sequence[Item]) -> Exception | None:
        """Run what is left of a part of a batch, and answer it; or the error that it failed with."""
        now = self._clock()
        waiting = [item for item in batch if _waits(item, now)]
        return await self._outcome(self._device.begin(waiting), again=True) if waiting else None

    async def _outcome(self, run: Run, *, again: bool = False) -> Exception | None:
        """Answer a batch when it has run, in parts where memory is short; or the error that it failed with."""
        try:
            items, embeddings = await self._reported(run, again=again)
        except Exception as error:  # noqa: BLE001  # handed to every caller that it concerns
            if self._out_of_memory(error) and self._shrink(run):
                return await self._run_again(run.items)
            return error
        _share_out(items, embeddings)
        now = self._clock()
        for item in run.items:
            _waits(item, now)  # those left out because their time was over
        return None

    def _shrink(self, run: Run) -> bool:
        """Run fewer frames at once from now on; false where there is no fewer."""
        fewer = self._device.shrink(run)
        if fewer is None:
            return False
        self._full = Decaying(0.9)
        self.max_batch = min(self.max_batch, fewer)
        return True

    async def _reported(self, run: Run, *, again: bool) -> tuple[Sequence[Item], Floats]:
        """The outcome of a batch; how long it took is reported and remembered."""
        items, failed = run.items, True
        try:
            items, embeddings, _ = await run.outcome
            failed = False
        finally:
            frames = sum(len(item.planes) for item in items)
            encode_s = (run.ended or self._clock()) - run.started
            if frames:
                if not failed:
                    self._times.add(frames, encode_s)
                waits_s = () if again else tuple(run.started - item.since for item in items)
                report = BatchReport(frames=frames, waits_s=waits_s, encode_s=encode_s, failed=failed, again=again)
                self._on_batch(report)
        return items, embeddings


def _waits(item: Item, now: float) -> bool:
    """Whether anybody needs the answer. One whose time is over is told so."""
    if item.deadline <= now and not item.done.done():
        item.done.set_exception(Expired())
    return not item.done.done()


def _share_out(batch: Sequence[Item], embeddings: Floats) -> None:
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
