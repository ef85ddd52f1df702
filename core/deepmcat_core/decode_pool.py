"""Worker processes that read images, so that a codec that crashes takes nothing with it but one image.

    submit ─► Calls ─► a thread for each worker ─pipe─► WorkerProcess: read_planes
                              │  the process dies: a fresh one, and decode_death says what becomes of the call
                              └► Future

Each worker has a thread that hands it one call at a time, and one thread more ends those that take too long. So it is
known which image a process died of or is stuck in, and no other image notices. Processes are spawned, not forked: the
parent may hold threads, CUDA and gRPC, which do not survive a fork. What a worker imports is the path from bytes to
planes, without torch, faiss or an engine.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from deepmcat_core.decode_calls import Call, Calls
from deepmcat_core.decode_death import Cause, Tries, WorkerDied
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.decode_worker import CannotStart, WorkerProcess

if TYPE_CHECKING:
    from deepmcat_core.frame import ImageSource
    from deepmcat_core.planes import Planes, ReadOptions

Result = TypeVar("Result")
OnDeath = Callable[[Cause], None]

_LOOK_AFTER_S = 1.0  # how often a worker that waits is looked after
_RETIRE_S = 1.0  # how long one that has done its calls may take to end by itself


class DecodePool:
    """`workers` processes that read images. Use it as a context manager, or call `close`.

    A call whose worker crashes is tried once more on a fresh one; a second crash is `CorruptImage`. A call that hits a
    limit is `ImageTooLarge`. A worker that is killed from outside costs its call a try that is not held against it.
    Workers that cannot start, or are killed again and again, are `concurrent.futures.BrokenExecutor`, which says
    nothing about an image. on_death: called with the cause of each death, from any thread.
    """

    def __init__(self, workers: int, limits: WorkerLimits | None = None, on_death: OnDeath | None = None) -> None:
        limits = limits or WorkerLimits()
        self._calls = Calls()
        self._workers = [_Worker(self._calls, limits, on_death) for _ in range(workers)]
        self._closed = threading.Event()
        watch = threading.Thread(target=self._watch, args=(limits.wall_s,), name="deepmcat-decode-watch", daemon=True)
        for thread in (watch, *(worker.thread for worker in self._workers)):
            thread.start()

    def __enter__(self) -> Self:
        """The pool; its workers are starting."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    @property
    def restarts(self) -> int:
        """How many workers have died, or were ended because of a limit, and been replaced.

        Those that retired after their number of calls do not count.
        """
        return sum(worker.restarts for worker in self._workers)

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        """Read an image in a worker. The future raises ImageError."""
        return self.submit_call(_read_planes, source, options)

    def submit_call(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call a picklable function in a worker. The future raises what it raises, without the cause.

        ImageTooLarge stands for MemoryError.
        """
        call = Call(function, args)
        self._calls.put(call)
        return call.future

    def close(self, grace_s: float = 5.0) -> None:
        """Cancel what waits, give what runs `grace_s` seconds to end, then end the workers."""
        for call in self._calls.close():
            call.future.cancel()
        for worker in self._workers:
            worker.closing.set()
        deadline = time.monotonic() + grace_s
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            while worker.thread.is_alive():
                worker.kill()
                worker.thread.join(0.1)  # it may have been about to start another
        self._closed.set()

    def _watch(self, wall_s: float) -> None:
        """End the workers whose calls take too long.

        Nobody has to wake it up: a call that begins while it sleeps has `wall_s`, and it never sleeps longer.
        """
        while not self._closed.wait(min([wall_s, *(worker.end_overdue() for worker in self._workers)])):
            pass


class _Worker:
    """One process at a time, and the thread that feeds it."""

    def __init__(self, calls: Calls, limits: WorkerLimits, on_death: OnDeath | None) -> None:
        self.restarts = 0
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="deepmcat-decode", daemon=True)
        self._calls = calls
        self._limits = limits
        self._on_death = on_death
        self._process: WorkerProcess | None = None

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        if (process := self._process) is not None:
            process.kill()

    def end_overdue(self) -> float:
        """See `WorkerProcess.end_overdue`."""
        process = self._process
        return math.inf if process is None else process.end_overdue()

    def _run(self) -> None:
        while not self._calls.is_closed:
            self._look_after()  # before a call comes, so that it does not wait for imports
            call = self._calls.get(within_s=_LOOK_AFTER_S)
            if call is not None and call.future.set_running_or_notify_cancel():
                self._answer(call)
            del call  # the image must not stay until the next one comes
        self._retire()

    def _look_after(self) -> None:
        """Have a process that is ready; one that cannot start is a matter for the call that needs it."""
        try:
            self._ready()
        except WorkerDied as death:
            self._bury(death.cause)
        except CannotStart:
            return

    def _answer(self, call: Call) -> None:
        tries = Tries(self._limits)
        error: Exception | None = None
        while error is None and not self.closing.is_set():
            try:
                self._exchange(call)
                return
            except WorkerDied as death:
                self._bury(death.cause)
                error = tries.after(death.cause)
            except CannotStart:
                error = BrokenExecutor("a decoding worker cannot start")
            except Exception as unpicklable:  # noqa: BLE001 - an argument or a result: the caller's matter
                self._retire()
                error = unpicklable
        if error is None or self.closing.is_set():
            error = BrokenExecutor("the decode pool is closed")
        call.future.set_exception(error)

    def _exchange(self, call: Call) -> None:
        process = self._ready()
        answer = process.call(call.function, call.args)
        if answer.succeeded:
            call.future.set_result(answer.value)
        else:
            call.future.set_exception(answer.value)
        if answer.worn:
            self._bury(Cause.MEMORY)
        elif process.calls >= self._limits.calls:
            self._retire()

    def _ready(self) -> WorkerProcess:
        """A process that is ready: a new one where there is none, or where it died while it waited."""
        if self._process is not None and not self._process.is_alive:
            self._bury(self._process.cause_of_death())
        if self._process is None:
            try:
                self._process = WorkerProcess(self._limits)
            except OSError as error:  # no more file descriptors, or no memory
                raise CannotStart from error
            try:
                self._process.start()
            except CannotStart:
                self._retire()
                raise
        return self._process

    def _bury(self, cause: Cause) -> None:
        """End what is left of a process, and count it."""
        if self._process is not None:
            self._process.end()
            self._process = None
        if not self.closing.is_set():
            self.restarts += 1
            if self._on_death is not None:
                self._on_death(cause)

    def _retire(self) -> None:
        if self._process is not None:
            self._process.end(_RETIRE_S)
            self._process = None


def _read_planes(source: ImageSource, options: ReadOptions) -> Planes:
    from deepmcat_core.planes import read_planes

    return read_planes(source, options)
