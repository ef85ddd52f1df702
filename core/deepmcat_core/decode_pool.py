"""Worker processes that read images, so that a codec that crashes takes nothing with it but one image.

    submit ─► queue ─► a thread for each worker ─pipe─► worker process: read_planes
                              │  process dies: a fresh one, the same call once more, alone
                              └► Future

Each worker has a thread that hands it one call at a time. So it is known which image a process died of, and no other
image notices. Processes are spawned, not forked: the parent may hold threads, CUDA and gRPC, which do not survive a
fork. What a worker imports is the path from bytes to planes, without torch, faiss or an engine.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from deepmcat_core.errors import CorruptImage

if TYPE_CHECKING:
    from deepmcat_core.frame import ImageSource
    from deepmcat_core.planes import Planes, ReadOptions

Result = TypeVar("Result")

MAX_TASKS = 1000  # codecs leak; a worker is replaced after this many calls
ATTEMPTS = 2
START_TIMEOUT_S = 60.0
_WORKER_DIED = (EOFError, OSError)  # what a pipe raises when its other end is gone

_SPAWN = multiprocessing.get_context("spawn")


class DecodePool:
    """`workers` processes that read images. Use it as a context manager, or call `close`.

    A call whose worker dies is tried once more on a fresh one; a second death is `CorruptImage`. Workers that cannot
    even start are `concurrent.futures.BrokenExecutor`, which says nothing about an image.
    """

    def __init__(self, workers: int, max_tasks: int = MAX_TASKS) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._workers = [_Worker(self._calls, max_tasks) for _ in range(workers)]
        self._closed = False
        self._lock = threading.Lock()  # no call is put after the last of them were cancelled
        for worker in self._workers:
            worker.thread.start()

    def __enter__(self) -> Self:
        """The pool; its workers are starting."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    @property
    def restarts(self) -> int:
        """How many workers have died and been replaced. Those that retired after `max_tasks` calls do not count."""
        return sum(worker.restarts for worker in self._workers)

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        """Read an image in a worker. The future raises ImageError."""
        return self.submit_call(_read_planes, source, options)

    def submit_call(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call a picklable function in a worker. The future raises what it raises, without the cause."""
        call = _Call(function, args)
        with self._lock:
            if self._closed:
                raise BrokenExecutor("the decode pool is closed")
            self._calls.put(call)
        return call.future

    def close(self, grace_s: float = 5.0) -> None:
        """Cancel what waits, give what runs `grace_s` seconds to end, then end the workers."""
        with self._lock:
            self._closed = True
        self._cancel_waiting()
        for worker in self._workers:
            worker.closing.set()
            self._calls.put(None)
        deadline = time.monotonic() + grace_s
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            worker.kill()
            worker.thread.join()

    def _cancel_waiting(self) -> None:
        with suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call.future.cancel()


class _Call:
    """A function with its arguments, and the future that awaits it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.future: Future[Any] = Future()


class _Worker:
    """One process at a time, and the thread that feeds it."""

    def __init__(self, calls: queue.SimpleQueue[_Call | None], max_tasks: int) -> None:
        self.restarts = 0
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="deepmcat-decode", daemon=True)
        self._calls = calls
        self._max_tasks = max_tasks
        self._tasks = 0
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        with suppress(ValueError):  # its thread has just ended it
            if (process := self._process) is not None:
                process.kill()

    def _run(self) -> None:
        self._ensure_started()  # before the first call, so that it does not wait for imports
        while (call := self._calls.get()) is not None:
            if call.future.set_running_or_notify_cancel():
                self._answer(call)
        self._stop()

    def _answer(self, call: _Call) -> None:
        for _ in range(ATTEMPTS):
            if not self._ensure_started():
                what = "the decode pool is closed" if self.closing.is_set() else "a decoding worker cannot start"
                call.future.set_exception(BrokenExecutor(what))
                return
            try:
                succeeded, result = self._exchange(call)
            except _WORKER_DIED:
                self._bury()
                continue
            except Exception as error:  # noqa: BLE001 - arguments or results that cannot be pickled: the caller's matter
                self._stop()
                call.future.set_exception(error)
                return
            if succeeded:
                call.future.set_result(result)
            else:
                call.future.set_exception(result)
            if self._tasks >= self._max_tasks:
                self._stop()
            return
        call.future.set_exception(CorruptImage(f"{ATTEMPTS} decoding workers in a row died of the image"))

    def _exchange(self, call: _Call) -> tuple[bool, Any]:
        assert self._pipe is not None
        self._tasks += 1
        self._pipe.send((call.function, call.args))
        answer: tuple[bool, Any] = self._pipe.recv()
        return answer

    def _ensure_started(self) -> bool:
        """Whether there is a process that is ready; starts one where there is none, or where it died while idle."""
        if self._process is not None:
            if self._process.is_alive():
                return True
            self._bury()
        if self.closing.is_set():
            return False
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs,), name="deepmcat-decode", daemon=True)
        process.start()
        theirs.close()  # else its death would not be the end of the pipe
        self._process, self._pipe, self._tasks = process, ours, 0
        try:
            if ours.poll(START_TIMEOUT_S) and ours.recv() is None:
                return True
        except _WORKER_DIED:
            pass  # it died on the way up, which is answered below
        self._stop()
        return False

    def _bury(self) -> None:
        if not self.closing.is_set():
            self.restarts += 1
        self._stop()

    def _stop(self) -> None:
        """End the process, which does so by itself when its pipe closes, and forget it."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.join(timeout=1.0)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _serve(pipe: Connection) -> None:
    """A worker's life: import, say so, answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    import deepmcat_core.planes  # noqa: F401 - so that the first image does not wait for it

    pipe.send(None)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - a call that cannot be unpickled here; the parent raises it
            _send(pipe, (False, error))
        else:
            _send(pipe, _outcome(function, args))


def _send(pipe: Connection, outcome: tuple[bool, Any]) -> None:
    try:
        pipe.send(outcome)
    except (pickle.PicklingError, AttributeError, TypeError):
        pipe.send((False, TypeError("what the call in a decoding worker returned or raised cannot be pickled")))


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether the function returned, and what it returned or raised, without the cause: that may quote a header."""
    try:
        return True, function(*args)
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        error.__cause__ = error.__context__ = None
        error.__traceback__ = None
        return False, error


def _read_planes(source: ImageSource, options: ReadOptions) -> Planes:
    from deepmcat_core.planes import read_planes

    return read_planes(source, options)
