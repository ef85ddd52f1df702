"""What a decoding worker may use: memory and CPU time, held by the kernel, because a codec that runs asks nobody.

    address space   RLIMIT_AS, once: what the worker has after its imports, and the budget on top of it
    CPU time        ITIMER_PROF, for each call: SIGPROF ends the process, whatever its C code is doing
    wall time       by the parent, which waits no longer

RLIMIT_CPU would count over the life of the process, and a handler of Python's would wait for the codec to return.
Nothing here needs a privilege, so it works in a container. Windows has neither limit and macOS no limit of memory;
`unenforced` says so, and what is left there is the wall time.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_STATM = Path("/proc/self/statm")  # proc(5): sizes in pages, the first two are the address space and what is resident
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_OOM_ADJUSTMENT = "500"  # of 1000: where memory runs out all the same, a worker goes before the server does


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What one worker may use.

    memory_bytes: address space beside its code and libraries; an image of 512 MiB on disk needs about three times that.
    cpu_s: CPU time of one call, of all threads. wall_s: how long one call may take. calls: then it is replaced, because
    codecs leak; to start one takes as much of a processor as two hundred small images.
    """

    memory_bytes: int = 2 * 2**30
    cpu_s: float = 30.0
    wall_s: float = 60.0
    calls: int = 10_000


def unenforced() -> tuple[str, ...]:
    """The limits that this platform cannot hold, of "memory" and "CPU time"."""
    missing = []
    if _memory() is None:
        missing.append("memory")
    if not hasattr(signal, "setitimer"):
        missing.append("CPU time")
    return tuple(missing)


class Footprint:
    """The memory of this process, measured from where it is now; the limit counts from there.

    Made in a worker when its imports are done.
    """

    def __init__(self, limits: WorkerLimits) -> None:
        self._budget = limits.memory_bytes
        self._base = _memory()
        if self._base is not None:
            _limit_address_space(self._base.address_space + self._budget)
        _keep_to_itself()

    @property
    def is_worn(self) -> bool:
        """Whether what earlier calls have left behind takes more than half of the budget from those to come."""
        now = _memory()
        if self._base is None or now is None:
            return False
        return now.address_space - self._base.address_space > self._budget // 2

    @property
    def kept_bytes(self) -> int:
        """How much more is resident than at first; 0 where there is no telling."""
        now = _memory()
        return 0 if self._base is None or now is None else now.resident - self._base.resident


@contextmanager
def limited_cpu(cpu_s: float) -> Iterator[None]:
    """Let the kernel end this process once it has used so much CPU time inside."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    # A disposition and a mask come from whoever started the parent; only the default action ends a loop in C.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class _Memory(NamedTuple):
    """Of this process, in bytes."""

    address_space: int
    resident: int


def _memory() -> _Memory | None:
    """None where there is no telling. macOS has an RLIMIT_AS and does not hold it."""
    if sys.platform != "linux":
        return None
    import resource

    try:
        address_space, resident, *_ = map(int, _STATM.read_text().split())
    except OSError:  # no /proc
        return None
    return _Memory(address_space * resource.getpagesize(), resident * resource.getpagesize())


def _limit_address_space(limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def _keep_to_itself() -> None:
    """No core dump, which would hold an image; and first in line where memory runs out."""
    import resource

    # core(5) has a limit of 0 not hold for a core that is piped to a program; fs/coredump.c makes an exception of 1.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    core = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    with suppress(OSError):  # /proc may be read-only
        _OOM_SCORE.write_text(_OOM_ADJUSTMENT)
