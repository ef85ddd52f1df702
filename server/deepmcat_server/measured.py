"""What is measured of a piece of work, as contexts around it: how long it took, how it ended, whether it was left.

Classes, where `contextlib.contextmanager` would read shorter: six of these are around every image, and a generator
costs three times as much as the measuring itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from prometheus_client import Counter, Histogram

from deepmcat_server.status import reason_of

LEEWAY_S = 0.05
"""A caller whose time is over cancels its call a little before it is over here."""


class Timed:
    """How long it takes, also where it fails."""

    __slots__ = ("_histogram", "_started")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        """It begins."""
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It has ended."""
        self._histogram.observe(time.perf_counter() - self._started)


class Counted:
    """How it ends: ok, cancelled, or the reason of its error. of_result: the counter of each."""

    __slots__ = ("_amount", "_of_result")

    def __init__(self, of_result: Callable[[str], Counter], amount: int) -> None:
        self._of_result = of_result
        self._amount = amount

    def __enter__(self) -> None:
        """It begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It has ended."""
        self._of_result(_result(error)).inc(self._amount)


class Left:
    """Whether it is left: because its time is over (deadline, by the loop's clock), or because its caller went."""

    __slots__ = ("_cancelled", "_deadline", "_expired")

    def __init__(self, expired: Counter, cancelled: Counter, deadline: float) -> None:
        self._expired, self._cancelled = expired, cancelled
        self._deadline = deadline

    def __enter__(self) -> None:
        """It begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It has ended."""
        if isinstance(error, TimeoutError):
            self._expired.inc()
        elif isinstance(error, asyncio.CancelledError):
            over = asyncio.get_running_loop().time() + LEEWAY_S >= self._deadline
            (self._expired if over else self._cancelled).inc()


def _result(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    return reason_of(error).lower() if isinstance(error, Exception) else "cancelled"
