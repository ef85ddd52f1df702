"""Decoding off the event loop: images go to worker processes that may die without taking the server with them.

The pool is first come, first served, so only as many images as keep it busy are handed to it; the others wait here,
in fair order, and who stops waiting is never decoded.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from types import TracebackType
from typing import Protocol, Self

from deepmcat_core.frame import ImageSource, RawPlane
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_server.errors import DecoderUnavailable
from deepmcat_server.room import Load, Place, Room
from deepmcat_server.timing import Decaying

PER_WORKER = 2
"""Images in the pool for each worker: one that it reads, and the next, so that it never waits for the event loop."""

AT_ONCE_PIXELS = 2**16
"""The most that a plane has which is read at once: up to here that takes less than to hand it to a worker."""

MIB = 2**20
KEEP = 0.95


class Pool(Protocol):
    """What reads images elsewhere: deepmcat_core.decode_pool.DecodePool, or threads in a test."""

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        """Read one image. The future raises ImageError."""

    def close(self) -> None:
        """End the workers."""


class Decoder:
    """A pool of so many workers as the event loop sees it. Leaving the context closes the pool."""

    def __init__(self, pool: Pool, workers: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._workers = workers
        self._clock = clock
        self._places: Room[Load] = Room(max_images=PER_WORKER * workers)
        self._in_pool = 0
        self._costs = 0.0  # of what is in the pool
        self._cost_s = Decaying(KEEP)  # a worker's seconds for what counts 1
        self._busy_s = 0.0  # workers' seconds since the last image was read
        self._busy_at = clock()

    @property
    def depth(self) -> int:
        """The number of images that wait for decoding."""
        return len(self._places.waiting)

    @property
    def workers(self) -> int:
        """How many read."""
        return self._workers

    async def read(
        self, source: ImageSource, options: ReadOptions, *, caller: str = "", deadline: float = math.inf
    ) -> Planes:
        """Decode and preprocess one image. Raises ImageError, DecoderUnavailable, TimeoutError.

        deadline: by the clock; what is not being decoded by then is not decoded.
        """
        if is_read_at_once(source, options.preprocessing.size):
            return read_planes(source, options)
        cost = decode_cost(_size_bytes(source))
        place = await self._places.enter(Load(caller=caller, cost=cost))
        if self._clock() >= deadline:
            place.release()
            raise TimeoutError
        try:
            reading = self._submit(source, options, place)
            del source  # the pool lets go of it when it is read
            return await asyncio.wrap_future(reading)
        except BrokenExecutor as error:
            raise DecoderUnavailable("the decoding workers are restarting; send the image again") from error

    async def warm(self) -> None:
        """Start the workers and have them import what they need, so that no caller waits for it."""
        pixel = RawPlane(rows=1, columns=1, sample_type="uint8", data=b"\0")
        await asyncio.gather(*(self.read(pixel, ReadOptions()) for _ in range(self._workers)))
        self._cost_s = Decaying(KEEP)  # starting is not reading

    def images(self) -> dict[str, int]:
        """How many images of each caller wait or are in the pool."""
        if not self._in_pool and not self._places.waiting:
            return {}
        callers = self._places.callers() | self._places.waiting.callers()
        return {c: self._places.inside_of(c) + self._places.waiting.count(c) for c in callers}

    def wait_s(self, caller: str, coming: Mapping[str, float]) -> float:
        """How long an image of `caller` that came now would wait for a worker.

        coming: by caller, what is to be decoded and comes before that, as for FairQueue.ahead.
        """
        ahead = self._places.waiting.ahead(caller, coming)
        if self._in_pool + ahead < self._workers:
            return 0.0
        return (ahead + self._costs / 2) * self.seconds(1.0) / self._workers  # those in the pool are half done

    def seconds(self, cost: float) -> float:
        """How long a worker takes for what counts so much, by what was read last."""
        return cost * (self._cost_s.mean or 0.0)

    async def __aenter__(self) -> Self:
        """Nothing: the pool is open."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool, off the loop: it waits for its workers."""
        await asyncio.to_thread(self._pool.close)

    def _submit(self, source: ImageSource, options: ReadOptions, place: Place[Load]) -> Future[Planes]:
        """Hand an image to the pool; its place is free when the pool has done with it, whoever still waits for it."""
        loop = asyncio.get_running_loop()
        self._count(1, place.load.cost)
        try:
            reading = self._pool.submit(source, options)
        except BaseException:
            self._leave(place, worked=False)
            raise

        def left(done: Future[Planes]) -> None:
            loop.call_soon_threadsafe(self._leave, place, not done.cancelled())

        reading.add_done_callback(left)
        return reading

    def _leave(self, place: Place[Load], worked: bool) -> None:
        self._count(-1, -place.load.cost)
        if worked:
            self._cost_s.add(self._busy_s / place.load.cost, place.load.cost)
            self._busy_s = 0.0
        place.release()

    def _count(self, images: int, cost: float) -> None:
        """What is in the pool changes: until now so many workers were busy."""
        now = self._clock()
        self._busy_s += min(self._in_pool, self._workers) * (now - self._busy_at)
        self._busy_at = now
        self._in_pool += images
        self._costs = self._costs + cost if self._in_pool else 0.0


def is_read_at_once(source: object, size: int) -> bool:
    """Whether it is a plane of 8 bits that is as large as the encoder's input, and that is small.

    There is nothing to parse, to decompress or to scale, so it does not need a process that may die.
    """
    return (
        isinstance(source, RawPlane)
        and source.sample_type == "uint8"
        and source.rows == source.columns == size
        and size * size <= AT_ONCE_PIXELS
    )


def decode_cost(size_bytes: int) -> float:
    """What decoding counts: the same for every image that a worker reads, and more for each MiB."""
    return 1.0 + size_bytes / MIB


def _size_bytes(source: ImageSource) -> int:
    return len(source.data) if isinstance(source, RawPlane) else len(source)
