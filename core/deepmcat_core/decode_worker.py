"""One decoding worker: the process, and how its parent holds it.

    WorkerProcess.start ──spawn──► serve: import, accept the limits, ready
                 .call ──function, arguments──► function, within its CPU time ──Answer──► the caller

What codecs print goes to a pipe that nobody shows to anybody: it may quote a header. Its end is looked through for
what a run-time library says before it aborts for want of memory.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from deepmcat_core.decode_death import NO_MEMORY_EXIT, Cause, WorkerDied, cause_of_death, no_memory
from deepmcat_core.decode_exchange import Exchange, Room
from deepmcat_core.decode_limits import Footprint, WorkerLimits, limited_cpu

START_TIMEOUT_S = 60.0
_DEATH_TIMEOUT_S = 5.0  # from the end of its pipe to the end of the process
_OTHER_END_GONE = (EOFError, OSError)  # what a pipe raises then
_PIPE_BYTES = 2**16
_KEPT_BYTES = 2**26  # the half of it is the most that glibc takes for a threshold of mmap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_REDIRECTS = os.name == "posix"  # elsewhere a pipe has no file descriptor

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Answer:
    """succeeded: whether the function returned; value: what it returned or raised. worn: the worker should go."""

    succeeded: bool
    value: Any
    worn: bool = False


class CannotStart(Exception):
    """A worker did not get as far as being ready, and nobody killed it."""


class WorkerProcess:
    """A process that answers calls, one at a time."""

    def __init__(self, limits: WorkerLimits) -> None:
        self.calls = 0
        self._limits = limits
        self._pipe, self._its_pipe = _SPAWN.Pipe()
        self._words, self._its_words = _SPAWN.Pipe(duplex=False)
        self._room = Room()  # last: of what is made here, only it is not closed by itself where something fails
        self._exchange = Exchange(self._pipe, self._room)
        self._last_words = b""
        self._watched = threading.Lock()
        self._due = math.inf  # when the call in its hands will have taken too long
        self._overdue = False
        self._process: SpawnProcess = _SPAWN.Process(
            target=serve,
            args=(self._its_pipe, self._room, self._its_words, limits),
            name="deepmcat-decode",
            daemon=True,
        )

    def start(self) -> None:
        """Start it and wait until it is ready. Raises CannotStart, and WorkerDied where it is killed on the way up."""
        try:
            self._process.start()
        except OSError as error:  # no more processes, or no memory for one
            raise CannotStart from error
        finally:
            self._its_pipe.close()  # else its death would not be the end of the pipe
            self._its_words.close()
            self._room.sent()
        try:
            if self._pipe.poll(START_TIMEOUT_S) and self._exchange.receive() is None:
                return
        except _OTHER_END_GONE as error:
            if (cause := self.cause_of_death()) is Cause.KILLED:
                raise WorkerDied(cause) from error
        raise CannotStart

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Answer:
        """Have it call the function. Raises WorkerDied, and what pickling raises."""
        self.calls += 1
        self._last_words = b""
        with self._watched:
            self._due = time.monotonic() + self._limits.wall_s
        try:
            self._exchange.send((function, args))
            answer: Answer = self._exchange.receive()
        except _OTHER_END_GONE as error:
            raise WorkerDied(Cause.TIME if self._overdue else self.cause_of_death()) from error
        finally:
            with self._watched:
                self._due = math.inf
        self._listen()
        return answer

    def end_overdue(self) -> float:
        """End it if its call has taken too long; else the seconds that are left, `inf` without a call.

        From a thread that watches: a worker that is stopped, or stops half-way through its answer, neither reads nor
        writes, and both ends of the pipe wait for ever.
        """
        with self._watched:  # so that one that has just answered lives
            left = self._due - time.monotonic()
            if left > 0:
                return left
            self._overdue = True
            self.kill()
            self._due = math.inf
            return math.inf

    def cause_of_death(self) -> Cause:
        """Why it ended. Waits for it to end; one that has only closed its pipe is made to, and has crashed."""
        self._process.join(_DEATH_TIMEOUT_S)
        if self._process.is_alive():
            return Cause.CRASH
        self._listen()
        return cause_of_death(self._process.exitcode, self._last_words)

    def kill(self) -> None:
        """End it, whatever it is doing. From any thread."""
        with suppress(ValueError, AttributeError):  # its thread has just ended it, or is about to start it
            self._process.kill()

    def end(self, grace_s: float = 0.0) -> None:
        """Close the pipe, upon which a process that waits ends by itself within `grace_s`, and let go of it."""
        self._exchange.close()
        self._words.close()
        if self._process.pid is None:
            return
        self._process.join(grace_s)
        self._process.kill()
        self._process.join()
        self._process.close()

    def _listen(self) -> None:
        """Keep the last of what it has printed, so that the pipe never fills up."""
        if not _REDIRECTS:
            return
        os.set_blocking(self._words.fileno(), False)
        with suppress(*_OTHER_END_GONE):  # there is no more
            while words := os.read(self._words.fileno(), _PIPE_BYTES):
                self._last_words = words


def serve(pipe: Connection, room: Room, words: Connection, limits: WorkerLimits) -> None:
    """A worker's life: import, accept the limits, say so, answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    import deepmcat_core.planes  # noqa: F401 - so that the first image does not wait for it

    _redirect_output(words)
    footprint = Footprint(limits)
    kept_bytes = min(_KEPT_BYTES, limits.memory_bytes // 8)
    _keep_memory(kept_bytes)
    surplus = Surplus(lambda: footprint.kept_bytes, kept_bytes)
    exchange = Exchange(pipe, room)
    with suppress(*_OTHER_END_GONE):  # the parent has closed it, or was killed
        exchange.send(None)
        try:
            while True:
                _send(exchange, _answer_next(exchange, limits, footprint))
                surplus.give_back()
        except MemoryError:  # part of a call may be in the pipe still, so nothing can follow
            os._exit(NO_MEMORY_EXIT)


def _keep_memory(kept_bytes: int) -> None:
    """Have glibc keep what an image leaves for the next one, up to so much.

    By its own rules each image's planes are new pages, which the kernel fills with zeros one by one: a quarter to a
    third of the CPU time of an uncompressed image (mallopt(3)).
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, kept_bytes)
        mallopt(_M_MMAP_THRESHOLD, kept_bytes // 2)


def _trim() -> None:
    """Have glibc give back what is free between what is not, which it keeps by itself (malloc_trim(3))."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class Surplus:
    """What a worker has grown by beyond what it is to keep, `kept_bytes`. It is given back by `trim`.

    What cannot be given back, such as a library that an image had loaded, is no reason to try after each image: that
    takes from the next one the pages that were kept for it.
    """

    def __init__(self, grown_bytes: Callable[[], int], kept_bytes: int, trim: Callable[[], None] = _trim) -> None:
        self._grown_bytes = grown_bytes
        self._kept_bytes = kept_bytes
        self._trim = trim
        self._least_bytes = 0  # that it had grown by at any time since it was last given back

    def give_back(self) -> None:
        """After an image: give back what there is, where it has become more."""
        grown = self._grown_bytes()
        if grown > max(self._least_bytes, self._kept_bytes) + self._kept_bytes:
            self._trim()
            self._least_bytes = self._grown_bytes()
        else:
            self._least_bytes = min(self._least_bytes, grown)


def _redirect_output(words: Connection) -> None:
    """Whatever C code prints, to the pipe; what does not fit is lost, and never holds the worker up."""
    if not _REDIRECTS:
        return
    os.set_blocking(words.fileno(), False)
    for descriptor in (1, 2):
        os.dup2(words.fileno(), descriptor)


def _answer_next(exchange: Exchange, limits: WorkerLimits, footprint: Footprint) -> Answer:
    try:
        function, args = exchange.receive()
    except (*_OTHER_END_GONE, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a call that cannot be unpickled here; the parent raises it
        return Answer(False, error)
    with limited_cpu(limits.cpu_s):
        succeeded, value = _outcome(function, args, limits)
    del args
    return Answer(succeeded, value, footprint.is_worn)


def _send(exchange: Exchange, answer: Answer) -> None:
    try:
        exchange.send(answer)
    except (pickle.PicklingError, AttributeError, TypeError):
        exchange.send(
            Answer(False, TypeError("what the call in a decoding worker returned or raised cannot be pickled"))
        )


def _outcome(function: Callable[..., Any], args: tuple[Any, ...], limits: WorkerLimits) -> tuple[bool, Any]:
    """Whether the function returned, and what it returned or raised, without the cause: that may quote a header."""
    try:
        return True, function(*args)
    except MemoryError:
        return False, no_memory(limits)
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        error.__cause__ = error.__context__ = None
        error.__traceback__ = None
        return False, error
