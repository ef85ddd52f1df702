"""Looking at something again and again, for as long as a context is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from deepmcat_core import logs

LOG = logs.logger("server.polling")


class Polling:
    """Calls each of `looks` every `poll_s` seconds while in context, each in a task of its own; 0: never.

    A look that raises is logged and looks again: what failed for a reason that nobody thought of may be over.
    """

    def __init__(self, looks: Sequence[Callable[[], Awaitable[object]]], *, poll_s: float) -> None:
        self._looks = looks
        self._poll_s = poll_s

    async def __aenter__(self) -> Self:
        """Start looking."""
        self._tasks = [asyncio.create_task(self._repeat(look)) for look in self._looks] if self._poll_s else []
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, look: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await look()
            except Exception:  # noqa: BLE001  # the server must not go on without watching, and nobody would be told
                logs.event(LOG, logging.ERROR, "watching failed", exc_info=True)
