"""One request of the Open Inference Protocol on its way: its images let in one by one, and answered together.

    files ──► one image each: decode ─► batch ─► assign        planes ──► as many as a batch takes: batch ─► assign

The first image of a call is refused at once where the server is full; those behind it, and those of a stream, wait for
room as the images of our own streams do. The first image that fails fails the request, and is named in the message.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from deepmcat_core.errors import ImageError
from deepmcat_server.admission import Admission, Arrival, Permit
from deepmcat_server.errors import ServerBusy
from deepmcat_server.in_time import TOO_LATE, in_time
from deepmcat_server.inference_tensors import IMAGE, Answer, Planes
from deepmcat_server.lines import Line
from deepmcat_server.metrics import Metrics
from deepmcat_server.quotas import Quotas


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What a request passes on its way in."""

    admission: Admission
    quotas: Quotas
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What is let in and answered together: a file, or planes (n, S, S). first: the index of its first image."""

    first: int
    content: bytes | Planes

    @property
    def images(self) -> int:
        return 1 if isinstance(self.content, bytes) else len(self.content)

    @property
    def size_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


class Inference:
    """The images of one request, on one line, which stays until `end`."""

    def __init__(self, door: Door, line: Line, caller: str) -> None:
        self._door = door
        self._line = line
        self._caller = caller
        self._deadline = math.inf
        self._tasks: list[asyncio.Task[Sequence[Answer]]] = []
        self._use = ExitStack()
        self._use.enter_context(line.use())

    async def let_in(self, images: list[bytes] | Planes, *, deadline: float, at_once: bool) -> None:
        """Begin each image as soon as there is room. at_once: the first one now or never.

        deadline: of the answer, by the loop's clock. Raises ServerBusy, QuotaExceeded.
        """
        self._deadline = deadline
        try:
            for part in _parts(images, self._line.batcher.max_batch):
                permit = await self._enter(part, at_once=at_once and part.first == 0)
                task = asyncio.create_task(self._answer(part, permit))
                task.add_done_callback(partial(_leave, permit))
                self._tasks.append(task)
        except Exception as error:
            self._door.metrics.refused(error)
            raise

    async def answers(self) -> list[Answer]:
        """The answers of all images, in order. Raises the error of the first that has none."""
        return [answer for task in self._tasks for answer in await task]

    def end(self) -> None:
        """Cancel what is not answered, and let the line go."""
        for task in self._tasks:
            task.cancel()
        self._use.close()

    async def _enter(self, part: _Part, *, at_once: bool) -> Permit:
        for _ in range(part.images):
            await self._take_quota(part.size_bytes // part.images, at_once=at_once)
        arrival = self._arrival(part)
        if at_once:
            return self._door.admission.enter_now(arrival)
        try:
            with self._door.metrics.leaving("receive", self._deadline):
                if (permit := self._door.admission.enter_in_turn(arrival)) is not None:
                    return permit
                async with asyncio.timeout_at(None if self._deadline == math.inf else self._deadline):
                    return await self._door.admission.enter(arrival)
        except TimeoutError as error:
            raise ServerBusy(TOO_LATE) from error

    async def _take_quota(self, size_bytes: int, *, at_once: bool) -> None:
        if at_once:
            self._door.quotas.take(self._caller, size_bytes)
        else:
            await self._door.quotas.wait(self._caller, size_bytes, self._deadline)

    def _arrival(self, part: _Part) -> Arrival:
        pipeline = self._line.pipeline
        frames = pipeline.most_frames(0) if isinstance(part.content, bytes) else part.images
        return Arrival(
            caller=self._caller,
            size_bytes=part.size_bytes,
            frames=frames,
            cost=frames,
            deadline=self._deadline,
            forecaster=pipeline.forecaster,
            decodes=isinstance(part.content, bytes),
        )

    async def _answer(self, part: _Part, permit: Permit) -> Sequence[Answer]:
        metrics = self._door.metrics
        try:
            with metrics.image(part.images):
                async with in_time(permit, metrics.forecast_error.observe):
                    return await self._answers(part, permit)
        except ImageError as error:
            raise type(error)(f"{IMAGE}[{part.first}] is {error.reason}: {error}") from error

    async def _answers(self, part: _Part, permit: Permit) -> Sequence[Answer]:
        pipeline = self._line.pipeline
        if isinstance(part.content, bytes):
            found = await pipeline.categorize(part.content, permit=permit, frames=0, top_k=1)
            version = found.catalog_version
            return [Answer(assignment=found.assignment, embedding=found.embedding, catalog_version=version)]
        embeddings, assignments, version = await pipeline.assign(part.content, permit=permit)
        return [
            Answer(assignment=assignment, embedding=embedding, catalog_version=version)
            for assignment, embedding in zip(assignments, embeddings, strict=True)
        ]


def _leave(permit: Permit, task: asyncio.Task[Sequence[Answer]]) -> None:
    permit.release()
    if not task.cancelled():
        task.exception()  # the request's error is that of its first image: asyncio need not log those of others


def _parts(images: list[bytes] | Planes, max_batch: int) -> Iterator[_Part]:
    if isinstance(images, list):
        for i, image in enumerate(images):
            yield _Part(first=i, content=image)
        return
    for first in range(0, len(images), max_batch):
        yield _Part(first=first, content=images[first : first + max_batch])
