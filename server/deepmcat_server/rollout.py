"""How another artifact comes into force while the server answers, and how it goes back.

    found ─read, verify─► artifact ─open, self-test─► engine ─warm─► line ─activate─► in force; the one before is kept

Whatever is wrong with the next one, the current one goes on. One change at a time, whoever asks for it; and once begun
a change is finished, even where whoever asked has gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from deepmcat_core import artifact as artifacts
from deepmcat_core import logs
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.engine import Engine
from deepmcat_core.frame import Limits
from deepmcat_server import opening, versions
from deepmcat_server.errors import ArtifactNotFound, ArtifactRefused
from deepmcat_server.lines import Line, Lines
from deepmcat_server.metrics import Metrics
from deepmcat_server.opening import NoRoom, OpenEngine
from deepmcat_server.versions import Found

LOG = logs.logger("server.artifacts")

Result = TypeVar("Result")


class Rollout:
    """Changes what `lines` answer. Leaving the context waits for a change under way."""

    def __init__(
        self,
        lines: Lines,
        paths: Mapping[str, Path],
        *,
        new_line: Callable[[Categorizer, int], Line],
        warm_batches: Callable[[Engine], Sequence[int]],
        open_engine: OpenEngine,
        limits: Limits,
        max_bytes: int,
        metrics: Metrics,
    ) -> None:
        """paths: by name. new_line: for an artifact of so many bytes. max_bytes: of all that is loaded."""
        self.lines = lines
        self.paths = paths
        self._new_line = new_line
        self._warm_batches = warm_batches
        self._open_engine = open_engine
        self._limits = limits
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        # One thread, so that loading takes one CPU from the images and no more.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deepmcat-load")

    async def begin(self, name: str, categorizer: Categorizer, size_bytes: int, batches: Sequence[int]) -> None:
        """Put an artifact that is loaded already in force, before the server answers. batches: to warm up with."""
        line = self.lines.loaded(categorizer.artifact.artifact_id)
        if line is None:
            line = await self._begin(categorizer, size_bytes, batches)
        elif line.categorizer is not categorizer:  # the same artifact under another name
            categorizer.engine.close()
        self._switch(name, line)
        self._count_in_force()

    async def follow(self, name: str, found: Found) -> None:
        """Put what was found at a name's path in force. Where it cannot be used: log, count, and nothing else."""
        try:
            await self._change(self._load_and_activate, name, found)
        except ArtifactRefused:  # logged and counted where it was refused
            return

    async def found(self, name: str) -> tuple[Found, ...]:
        """The versions that lie at a name's path, oldest first."""
        if (path := self.paths.get(name)) is None:
            return ()
        return await asyncio.to_thread(versions.versions, path)

    async def load(self, name: str, version: str = "") -> Line:
        """Load a version beside what is in force. Raises ArtifactNotFound, ArtifactRefused."""
        return await self._change(self._load, await self._find(name, version))

    async def activate(self, name: str, version: str = "") -> Line:
        """Put a version in force, loaded first where it is not. Raises ArtifactNotFound, ArtifactRefused."""
        return await self._change(self._load_and_activate, name, await self._find(name, version))

    async def activate_loaded(self, name: str, artifact_id: str) -> Line:
        """Put a loaded artifact in force. Raises ArtifactNotFound."""
        self._check_name(name)
        return await self._change(self._switch_to, name, artifact_id)

    async def roll_back(self, name: str) -> Line:
        """Put in force what was so before; again: go forward again. Raises ArtifactNotFound, ArtifactRefused."""
        self._check_name(name)
        return await self._change(self._roll_back, name)

    async def unload(self, artifact_id: str) -> Line:
        """Take an artifact out that is in force nowhere. Raises ArtifactNotFound, ArtifactRefused."""
        return await self._change(self._unload, artifact_id)

    async def __aenter__(self) -> Self:
        """Nothing: changes come as they are asked for."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish what is under way, off the loop: it may be a load."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    async def _change(self, change: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
        """Run a change to its end, in its turn, also where the caller is cancelled meanwhile."""

        async def in_turn() -> Result:
            async with self._one_at_a_time:
                result = await change(*arguments)
            self._count_in_force()
            return result

        task = asyncio.create_task(in_turn())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load_and_activate(self, name: str, found: Found) -> Line:
        line = await self._load(found)
        self._switch(name, line)
        return line

    async def _switch_to(self, name: str, artifact_id: str) -> Line:
        line = self._loaded(artifact_id)
        self._switch(name, line)
        return line

    async def _roll_back(self, name: str) -> Line:
        kept = self.lines.kept(name)
        if not kept:
            raise ArtifactRefused("no artifact that was in force before is kept; activate a version instead")
        self._switch(name, kept[-1])
        return kept[-1]

    async def _unload(self, artifact_id: str) -> Line:
        line = self._loaded(artifact_id)
        self.lines.unload(line)
        logs.event(LOG, logging.INFO, "artifact unloaded", artifact_id=artifact_id)
        return line

    def _switch(self, name: str, line: Line) -> None:
        """Between two turns of the loop, and so between images."""
        before = self.lines.in_force.get(name)
        if before is line:
            return
        if before is not None:  # else nothing could be foretold yet, and calls that come upon a queue would be refused
            line.batcher.begin_like(before.batcher)
        self.lines.activate(name, line)
        self._metrics.switched(name)
        if before is not None:
            logs.event(
                LOG,
                logging.INFO,
                "artifact in force",
                artifact_name=name,
                artifact_id=line.artifact_id,
                previous_artifact_id=before.artifact_id,
                catalog_version=line.categorizer.catalog.version,
            )

    async def _load(self, found: Found) -> Line:
        """The line of what was found, new or there already. Raises ArtifactRefused, logged and counted."""
        started = time.perf_counter()
        try:
            line = await self._loaded_or_opened(found)
        except Exception as error:
            # Whatever lies on the disk must not end the server: anything can be wrong with it, and is its own fault.
            result = opening.result_of(error)
            self._metrics.loaded(result, time.perf_counter() - started)
            opening.refused(found, error)
            raise ArtifactRefused(
                f"the artifact cannot be used ({result}); the server's log says more, and what was in force goes on"
            ) from error
        self._metrics.loaded("ok", time.perf_counter() - started)
        return line

    async def _loaded_or_opened(self, found: Found) -> Line:
        line = self.lines.loaded(await self._in_thread(artifacts.identify, found.path))
        if line is None:
            return await self._open(found)
        if line.categorizer.artifact.folder != found.path:  # the same artifact elsewhere, perhaps with other names
            line.renew(await self._in_thread(opening.read, found))
        return line

    async def _open(self, found: Found) -> Line:
        started = time.perf_counter()
        if not self.lines.make_room(found.size_bytes, self._max_bytes):
            raise NoRoom("the loaded artifacts and this one are larger than max_artifact_bytes together")
        categorizer = await self._in_thread(opening.open_found, found, self._open_engine, self._limits)
        line = await self._begin(categorizer, found.size_bytes, self._warm_batches(categorizer.engine))
        logs.event(
            LOG,
            logging.INFO,
            "artifact loaded",
            artifact_id=line.artifact_id,
            artifact_version=found.version,
            duration_s=round(time.perf_counter() - started, 3),
        )
        return line

    async def _begin(self, categorizer: Categorizer, size_bytes: int, batches: Sequence[int]) -> Line:
        """A warm line, among those that can be pinned."""
        line = self._new_line(categorizer, size_bytes)
        await line.__aenter__()
        try:
            await line.warm(batches)
        except BaseException:
            await line.__aexit__(None, None, None)
            raise
        self.lines.add(line)
        return line

    def _count_in_force(self) -> None:
        self._metrics.artifacts({name: line.artifact_id for name, line in self.lines.in_force.items()})

    async def _find(self, name: str, version: str) -> Found:
        """The version of a name, as it lies there now. Raises ArtifactNotFound."""
        self._check_name(name)
        found = await self.found(name)
        if not version and found:
            return found[-1]
        for candidate in found:
            if candidate.version == version:
                return candidate
        raise ArtifactNotFound("there is no such version at the path that the artifact is served from")

    def _check_name(self, name: str) -> None:
        names = sorted(self.lines.in_force)
        if name not in names:
            raise ArtifactNotFound(f"no artifact is served under that name; there are {', '.join(names)}")

    def _loaded(self, artifact_id: str) -> Line:
        line = self.lines.loaded(artifact_id)
        if line is None:
            raise ArtifactNotFound("no artifact of that id is loaded; load its version first")
        return line

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
