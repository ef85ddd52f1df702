"""Checking promises in a process of their own: a codec that crashes is a finding and not the end of the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepmcat_core.decode_death import Cause
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.frame import ImageSource

from .promises import BrokenPromise, check

ROOT = Path(__file__).parents[2]

# A worker that these end has got past what `check` measures itself, which is less.
_LIMITS = WorkerLimits(memory_bytes=2**30, cpu_s=20.0, wall_s=120.0)


class Inspector:
    """Checks files in a worker. Made by `inspecting`."""

    def __init__(self, pool: DecodePool, deaths: list[Cause]) -> None:
        self._pool = pool
        self._deaths = deaths

    def check(self, source: ImageSource, how: Callable[[ImageSource], str] = check) -> str:
        """See `promises.check`; that the worker dies is a broken promise too."""
        self._deaths.clear()
        future = self._pool.submit_call(how, source)
        error = future.exception()
        if crashes := [cause for cause in self._deaths if cause is not Cause.KILLED]:
            raise BrokenPromise(f"the worker dies: {crashes[0]}")
        if error is not None:
            raise error
        return future.result()


@contextmanager
def inspecting() -> Iterator[Inspector]:
    """An inspector with one worker."""
    deaths: list[Cause] = []
    added = str(ROOT)
    sys.path.insert(0, added)  # workers have to find `check`
    try:
        with DecodePool(1, _LIMITS, deaths.append) as pool:
            yield Inspector(pool, deaths)
    finally:
        sys.path.remove(added)
