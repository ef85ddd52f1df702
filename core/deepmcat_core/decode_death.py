"""Why a decoding worker ended, and what that means for the image in its hands.

    cause    how it shows                                        what becomes of the image
    crash    SIGSEGV, SIGABRT, SIGBUS …, or an exit of its own   once more, alone, on a fresh worker; then CORRUPT_IMAGE
    killed   SIGKILL, SIGTERM …: from outside, no codec does     once more, up to KILLS times; then "send it again"
    memory   no room for the call, or a codec that said so       IMAGE_TOO_LARGE
    cpu      SIGPROF, our timer                                  IMAGE_TOO_LARGE
    time     the parent waited long enough                       IMAGE_TOO_LARGE

A kill from outside says nothing about the image, so it is never held against it: an operator, an orchestrator or the
kernel's OOM killer did it. The tries are bounded all the same, and what they end with is not a verdict on the image.
"""

from __future__ import annotations

import signal
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from enum import StrEnum

from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.errors import CorruptImage, ImageTooLarge

CRASHES = 2  # tries of an image whose workers crash
KILLS = 10  # tries of an image whose workers are killed: each takes the second that a worker needs to start

NO_MEMORY_EXIT = 71  # of a worker without room to receive a call or to send its answer; EX_OSERR of sysexits.h

_FAULTS = frozenset(
    number
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
    if (number := getattr(signal, name, None)) is not None
)
# What the run-time libraries of C++ and Rust say before they abort for want of memory.
_OUT_OF_MEMORY = (b"std::bad_alloc", b"memory allocation of")


class Cause(StrEnum):
    """Why a worker ended in a call, or while it waited for one: a closed set, fit for a label."""

    CRASH = "crash"
    KILLED = "killed"
    MEMORY = "memory"
    CPU = "cpu"
    TIME = "time"


class WorkerDied(Exception):
    """A worker ended, and with it the call in its hands."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


def cause_of_death(exit_code: int | None, last_words: bytes) -> Cause:
    """From how a process ended, as `multiprocessing` tells it, and the last that it wrote to its standard error."""
    if exit_code == NO_MEMORY_EXIT:
        return Cause.MEMORY
    if exit_code is None or exit_code >= 0:
        return Cause.CRASH  # a codec called exit()
    if -exit_code == getattr(signal, "SIGPROF", None):
        return Cause.CPU
    if -exit_code not in _FAULTS:
        return Cause.KILLED
    return Cause.MEMORY if any(words in last_words for words in _OUT_OF_MEMORY) else Cause.CRASH


@dataclass(slots=True)
class Tries:
    """How often the workers of one call have died."""

    limits: WorkerLimits
    crashes: int = 0
    kills: int = 0

    def after(self, cause: Cause) -> Exception | None:
        """What the call ends with, now that one more has died of this; None: it is tried once more."""
        match cause:
            case Cause.CRASH:
                self.crashes += 1
                if self.crashes < CRASHES:
                    return None
                return CorruptImage(f"{CRASHES} decoding workers in a row died of the image")
            case Cause.KILLED:
                self.kills += 1
                if self.kills < KILLS:
                    return None
                return BrokenExecutor(f"{KILLS} decoding workers in a row were killed from outside")
            case Cause.MEMORY:
                return no_memory(self.limits)
            case Cause.CPU:
                return ImageTooLarge(f"reading the image took more than {self.limits.cpu_s:g} s of CPU time")
            case Cause.TIME:
                return ImageTooLarge(f"reading the image took longer than {self.limits.wall_s:g} s")


def no_memory(limits: WorkerLimits) -> ImageTooLarge:
    """The error for an image that needs more memory than a worker may have."""
    return ImageTooLarge(f"reading the image needs more than the {limits.memory_bytes} bytes of memory allowed")
