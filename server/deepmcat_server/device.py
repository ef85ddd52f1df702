"""The thread that owns the device: batches run there one after the other, each in parts where memory is short.

A batch may be handed over while the one before it still runs, so that the device need not wait for the event loop.
Who has stopped waiting by the time it is a batch's turn is left out.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """What waits for its embeddings: planes (F, S, S). since, deadline: by the clock."""

    planes: Planes
    caller: str
    since: float
    deadline: float
    done: asyncio.Future[Floats]

    def waits(self, now: float) -> bool:
        """Whether anybody needs the answer."""
        return self.deadline > now and not self.done.done()


class Outcome(NamedTuple):
    """What a batch came to: the items that still waited when it began, their embeddings (B, D), and when it ended."""

    items: list[Item]
    embeddings: Floats
    ended: float


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """A batch that was handed over.

    started: when the one before it had ended. ended: None as long as it has not. bound: how many times the device had
    been found to have less memory than was thought, when it was handed over.
    """

    items: Sequence[Item]
    outcome: asyncio.Future[Outcome]
    started: float
    bound: int
    ended: float | None = None

    @property
    def frames(self) -> int:
        """Of all its items."""
        return sum(len(item.planes) for item in self.items)


class Device:
    """Runs batches by `embed`, (B, 1, S, S) → (B, D), in `thread`. Used on the event loop only."""

    def __init__(
        self, embed: Callable[[npt.NDArray[np.uint8]], Floats], thread: Executor, clock: Callable[[], float]
    ) -> None:
        """clock: monotonic seconds."""
        self._embed = embed
        self._thread = thread
        self._clock = clock
        self._at_once: float = math.inf  # frames that it has memory for
        self._bound = 0  # how many times that was found to be less
        self._begun: deque[Run] = deque()

    def begin(self, items: Sequence[Item]) -> Run:
        """Run a batch after those that were handed over before. What goes wrong is its outcome, and never raised."""
        now, loop = self._clock(), asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome]
        try:
            outcome = loop.run_in_executor(self._thread, self._run, items)
        except Exception as error:  # noqa: BLE001  # no thread to be had: the items must not wait for ever
            outcome = loop.create_future()
            outcome.set_exception(error)
        run = Run(items=items, outcome=outcome, started=now, bound=self._bound)
        self._begun.append(run)
        outcome.add_done_callback(lambda _: self._end(run))
        return run

    def busy_s(self, batch_s: Callable[[int], float]) -> float:
        """How much longer it is busy, by how long batches take. One that is late is expected to be as late again."""
        if not self._begun:
            return 0.0
        running, *behind = self._begun
        return abs(self.left_s(running, batch_s)) + sum(batch_s(run.frames) for run in behind)

    def left_s(self, run: Run, batch_s: Callable[[int], float]) -> float:
        """How much longer the batch that runs now should take; below 0 where it is late."""
        return batch_s(run.frames) - (self._clock() - run.started)

    def shrink(self, run: Run) -> int | None:
        """Run fewer frames at once than a batch that memory was short for: how many; None where there are no fewer.

        One that was handed over before the bound was found says nothing of that bound.
        """
        if run.bound < self._bound:
            return int(self._at_once)
        frames = int(min(run.frames, self._at_once))
        if frames == 1:
            return None
        self._at_once = frames // 2
        self._bound += 1
        return frames // 2

    async def call(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """Run something else in the thread, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _end(self, run: Run) -> None:
        self._begun.remove(run)
        failed = run.outcome.cancelled() or run.outcome.exception() is not None
        run.ended = self._clock() if failed else run.outcome.result().ended  # the loop may have been late to hear of it
        if self._begun:
            self._begun[0].started = run.ended

    def _run(self, items: Sequence[Item]) -> Outcome:
        """In the thread."""
        now = self._clock()
        waiting = [item for item in items if item.waits(now)]
        if not waiting:
            return Outcome([], np.empty((0, 0), np.float32), now)
        images = np.concatenate([item.planes for item in waiting])[:, None]  # (B, 1, S, S)
        at_once = int(min(self._at_once, len(images)))
        parts = [self._embed(images[start : start + at_once]) for start in range(0, len(images), at_once)]
        embeddings = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if embeddings.ndim != 2 or len(embeddings) != len(images):
            raise ValueError(f"the engine gave embeddings of shape {embeddings.shape} for {len(images)} images")
        return Outcome(waiting, embeddings, self._clock())
