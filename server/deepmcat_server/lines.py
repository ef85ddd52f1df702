"""Loaded artifacts, and which of them answers.

    Lines ─ name ─► in force ─ Line: artifact, engine, batcher, catalog watch
               └──► kept: what was in force before, for rollback and for those who pin it

A batch never mixes artifacts, because each has a batcher of its own. An image stays with the line it began on until its
answer; a line that is taken out answers what it has, and only then gives its engine back. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_server.batcher import Batcher
from deepmcat_server.catalog_watch import CatalogWatch
from deepmcat_server.errors import ArtifactNotFound, ArtifactRefused
from deepmcat_server.metrics import CatalogResult
from deepmcat_server.pipeline import Pipeline

DEFAULT = "default"
"""The name of the artifact that answers where a caller names none."""

REMEMBERED_S = 600.0
"""How long an artifact counts as one that somebody asks for by its id."""


class Line:
    """One loaded artifact with all that answers for it. It owns the categorizer's engine and closes it."""

    def __init__(
        self,
        pipeline: Pipeline,
        batcher: Batcher,
        *,
        catalog_poll_s: float,
        size_bytes: int = 0,
        on_catalog: Callable[[CatalogResult], None] = lambda result: None,
    ) -> None:
        """size_bytes: of the artifact's files, which is about what it takes of memory. on_catalog: see CatalogWatch."""
        self.pipeline = pipeline
        self.batcher = batcher
        self.size_bytes = size_bytes
        self.asked_for = -math.inf
        """When somebody last asked for it by its id, by time.monotonic()."""
        self._watch = CatalogWatch(self.categorizer, poll_s=catalog_poll_s, on_catalog=on_catalog)
        self._life = AsyncExitStack()
        self._images = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def categorizer(self) -> Categorizer:
        """The artifact with its engine, and its catalog in force."""
        return self.pipeline.categorizer

    @property
    def artifact_id(self) -> str:
        """The artifact's id."""
        return self.categorizer.artifact.artifact_id

    @property
    def images(self) -> int:
        """How many images are on it."""
        return self._images

    @contextmanager
    def use(self) -> Iterator[Self]:
        """Keep it from ending meanwhile."""
        self._images += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._images -= 1
            if not self._images:
                self._idle.set()

    async def warm(self, batches: Sequence[int]) -> None:
        """Run a batch of each of these sizes once, in the thread that will run them."""
        await self.batcher.call(self.categorizer.engine.warm, batches)

    def renew(self, artifact: Artifact) -> None:
        """The same artifact lies elsewhere now, perhaps with other names: these come into force."""
        self.categorizer.artifact = artifact
        self.categorizer.use_catalog(artifact.catalog)

    async def finish(self) -> None:
        """End it as soon as no image is on it, or `hurry` is called."""
        await self._idle.wait()
        await self.__aexit__(None, None, None)

    def hurry(self) -> None:
        """Let `finish` wait no longer."""
        self._idle.set()

    async def __aenter__(self) -> Self:
        """Start batching and watching."""
        await self._life.enter_async_context(self.batcher)
        await self._life.enter_async_context(self.pipeline)
        await self._life.enter_async_context(self._watch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Answer what waits, end the threads, free the device."""
        await self._life.aclose()
        await asyncio.to_thread(self.categorizer.engine.close)


@dataclass(slots=True, kw_only=True)
class _Name:
    """What a name stands for. kept: what it stood for before, the last one last."""

    in_force: Line
    kept: list[Line] = field(default_factory=list)


class Lines:
    """The loaded artifacts by id and by name. Leaving the context ends them all.

    keep: how many of those that were in force under a name stay loaded. Others stay only where somebody asked for them.
    """

    def __init__(self, *, keep: int) -> None:
        self._keep = keep
        self._by_id: dict[str, Line] = {}
        self._names: dict[str, _Name] = {}
        self._ending: dict[Line, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Line]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def in_force(self) -> dict[str, Line]:
        """What answers, by name."""
        return {name: entry.in_force for name, entry in self._names.items()}

    @property
    def at_work(self) -> list[Line]:
        """What a call may be for: those in force, and those that somebody has asked for by id of late."""
        in_force, since = {entry.in_force for entry in self._names.values()}, time.monotonic() - REMEMBERED_S
        return [line for line in self if line in in_force or line.images or line.asked_for > since]

    def kept(self, name: str) -> tuple[Line, ...]:
        """What was in force under a name, the last one last."""
        return tuple(self._names[name].kept)

    def find(self, pin: str = "") -> Line:
        """The line that a caller means: by id, by name, or the default. Raises ArtifactNotFound."""
        if entry := self._names.get(pin or DEFAULT):
            return entry.in_force
        if line := self._by_id.get(pin):
            line.asked_for = time.monotonic()
            return line
        in_force = self._names[DEFAULT].in_force.artifact_id
        raise ArtifactNotFound(f"the artifact asked for is not loaded; the one in force is {in_force}")

    def loaded(self, artifact_id: str) -> Line | None:
        """The line of an artifact."""
        return self._by_id.get(artifact_id)

    def add(self, line: Line) -> None:
        """A line that has begun: whoever pins it is answered by it from now on."""
        self._by_id[line.artifact_id] = line

    def activate(self, name: str, line: Line) -> None:
        """Put a line in force under a name: the next image that begins is the first on it. The one before is kept."""
        entry = self._names.get(name)
        if entry is None:
            self._names[name] = _Name(in_force=line)
            return
        if entry.in_force is line:
            return
        entry.kept = [kept for kept in entry.kept if kept is not line] + [entry.in_force]
        entry.in_force = line
        self._trim(entry)

    def make_room(self, size_bytes: int, limit_bytes: int) -> bool:
        """Whether an artifact more fits in, after ending as many of those kept as it takes; none where it cannot."""
        kept = [line for line in self if self._only_kept(line)]
        freed_bytes, ending = 0, []
        used_bytes = sum(line.size_bytes for line in self)
        while used_bytes - freed_bytes + size_bytes > limit_bytes:
            if not kept:
                return False
            ending.append(kept.pop(0))
            freed_bytes += ending[-1].size_bytes
        for line in ending:
            self._end(line)
        return True

    def unload(self, line: Line) -> None:
        """Take a line out; what is on it is answered. Raises ArtifactRefused where it is in force."""
        for name, current in self.in_force.items():
            if current is line:
                raise ArtifactRefused(f"the artifact is in force as {name}; activate another there first")
        self._end(line)

    async def __aenter__(self) -> Self:
        """Nothing: lines come with `add`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End them all, those that were on their way out too."""
        for line in self:
            self._end(line)
        for line in self._ending:
            line.hurry()
        await asyncio.gather(*self._ending.values())

    def _trim(self, entry: _Name) -> None:
        while len(entry.kept) > self._keep:
            line = entry.kept.pop(0)
            if not any(line in (other.in_force, *other.kept) for other in self._names.values()):
                self._end(line)

    def _only_kept(self, line: Line) -> bool:
        kept = any(line in entry.kept for entry in self._names.values())
        return kept and all(line is not entry.in_force for entry in self._names.values())

    def _end(self, line: Line) -> None:
        del self._by_id[line.artifact_id]
        for entry in self._names.values():
            entry.kept = [kept for kept in entry.kept if kept is not line]
        self._ending[line] = asyncio.create_task(line.finish())
        self._ending[line].add_done_callback(lambda _: self._ending.pop(line))
