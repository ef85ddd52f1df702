"""Whether an event loop goes round: it beats, and other threads see when it last did.

Whatever holds the loop up (a call that blocks, a stopped process, a machine without a core to spare) holds up the beat.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Self

BEAT_S = 1.0


class Pulse:
    """The beat of the loop that enters it, until it leaves."""

    def __init__(self) -> None:
        self._last: float | None = None

    @property
    def silence_s(self) -> float:
        """Since the last beat; 0 where nobody has entered yet. From any thread."""
        last = self._last
        return 0.0 if last is None else time.monotonic() - last

    async def __aenter__(self) -> Self:
        """Begin."""
        self._last = time.monotonic()
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: silence says nothing any more."""
        self._beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._beating
        self._last = None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._last = time.monotonic()
