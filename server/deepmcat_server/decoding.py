"""Decoding off the event loop: images go to worker processes that may die without taking the server with them."""

from __future__ import annotations

import asyncio
from concurrent.futures import BrokenExecutor, Future
from types import TracebackType
from typing import Protocol, Self

from deepmcat_core.frame import ImageSource, RawPlane
from deepmcat_core.planes import Planes, ReadOptions
from deepmcat_server.errors import DecoderUnavailable


class Pool(Protocol):
    """What reads images elsewhere: deepmcat_core.decode_pool.DecodePool, or threads in a test."""

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        """Read one image. The future raises ImageError."""

    def close(self) -> None:
        """End the workers."""


class Decoder:
    """A pool as the event loop sees it. Leaving the context closes the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self, source: ImageSource, options: ReadOptions) -> Planes:
        """Decode and preprocess one image. Raises ImageError, DecoderUnavailable."""
        try:
            return await asyncio.wrap_future(self._pool.submit(source, options))
        except BrokenExecutor as error:
            raise DecoderUnavailable("the decoding workers are restarting; send the image again") from error

    async def warm(self, workers: int) -> None:
        """Start the workers and have them import what they need, so that no caller waits for it."""
        pixel = RawPlane(rows=1, columns=1, sample_type="uint8", data=b"\0")
        await asyncio.gather(*(self.read(pixel, ReadOptions()) for _ in range(workers)))

    async def __aenter__(self) -> Self:
        """Nothing: the pool is open."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool, off the loop: it waits for its workers."""
        await asyncio.to_thread(self._pool.close)
