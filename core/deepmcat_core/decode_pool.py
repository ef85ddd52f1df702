"""Worker processes that read images, so that a codec that crashes takes nothing with it but one image.

    submit ─► queue ─► a thread for each worker ─pipe─► worker process: read_planes
                              │  process dies: a fresh one, the same call once more, alone
                              │  call takes too long: a fresh one, and no second try
                              └► Future

Each worker has a thread that hands it one call at a time. So it is known which image a process died of or is stuck in,
and no other image notices. Processes are spawned, not forked: the parent may hold threads, CUDA and gRPC, which do not
survive a fork. What a worker imports is the path from bytes to planes, without torch, faiss or an engine.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
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

from deepmcat_core.errors import CorruptImage, ImageTooLarge

if TYPE_CHECKING:
    from deepmcat_core.frame import ImageSource
    from deepmcat_core.planes import Planes, ReadOptions

Result = TypeVar("Result")

MAX_TASKS = 1000  # codecs leak; a worker is replaced after this many calls
ATTEMPTS = 2
TIMEOUT_S = 60.0  # a codec that loops; the largest images that are taken need a few seconds
START_TIMEOUT_S = 60.0
_OTHER_END_GONE = (EOFError, OSError)  # what a pipe raises then

_SPAWN = multiprocessing.get_context("spawn")


class DecodePool:
    """`workers` processes that read images. Use it as a context manager, or call `close`.

    A call whose worker dies is tried once more on a fresh one; a second death is `CorruptImage`. A call that takes
    longer than `timeout_s`, once a worker has it, loses its worker and is `ImageTooLarge`. Workers that cannot even
    start are `concurrent.futures.BrokenExecutor`, which says nothing about an image.
    """

    def __init__(self, workers: int, max_tasks: int = MAX_TASKS, timeout_s: float = TIMEOUT_S) -> None:
        self._calls = _Calls()
        self._workers = [_Worker(self._calls, max_tasks, timeout_s) for _ in range(workers)]
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
        """How many workers have died, or were killed in a call that took too long, and been replaced.

        Those that retired after `max_tasks` calls do not count.
        """
        return sum(worker.restarts for worker in self._workers)

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        """Read an image in a worker. The future raises ImageError."""
        return self.submit_call(_read_planes, source, options)

    def submit_call(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call a picklable function in a worker. The future raises what it raises, without the cause."""
        call = _Call(function, args)
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
            worker.kill()
            worker.thread.join()


class _Call:
    """A function with its arguments, and the future that awaits it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.future: Future[Any] = Future()


class _Calls:
    """The calls that wait, first come, first out. One that is cancelled leaves at once, and its image with it."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Call] = {}  # in order of arrival; a dict, because calls leave from the middle
        self._numbers = itertools.count()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, call: _Call) -> None:
        """Have a call wait. Raises BrokenExecutor once closed."""
        number = next(self._numbers)
        with self._changed:
            if self._closed:
                raise BrokenExecutor("the decode pool is closed")
            self._waiting[number] = call
            self._changed.notify()
        call.future.add_done_callback(lambda _: self._leave(number))

    def get(self) -> _Call | None:
        """The next call, as soon as there is one; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None

    def close(self) -> list[_Call]:
        """Take no more; what waits is the caller's."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
            self._changed.notify_all()
        return waiting

    def _leave(self, number: int) -> None:
        with self._changed:
            self._waiting.pop(number, None)


class _TookTooLong(Exception):
    """A worker did not answer in its time."""


class _Worker:
    """One process at a time, and the thread that feeds it."""

    def __init__(self, calls: _Calls, max_tasks: int, timeout_s: float) -> None:
        self.restarts = 0
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="deepmcat-decode", daemon=True)
        self._calls = calls
        self._max_tasks = max_tasks
        self._timeout_s = timeout_s
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
            del call  # the image must not stay until the next one comes
        self._stop()

    def _answer(self, call: _Call) -> None:
        for _ in range(ATTEMPTS):
            if not self._ensure_started():
                what = "the decode pool is closed" if self.closing.is_set() else "a decoding worker cannot start"
                call.future.set_exception(BrokenExecutor(what))
                return
            try:
                succeeded, result = self._exchange(call)
            except _OTHER_END_GONE:
                self._bury()
                continue
            except _TookTooLong:
                self.kill()
                self._bury()
                call.future.set_exception(ImageTooLarge(f"reading the image took longer than {self._timeout_s:g} s"))
                return
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
        if not self._pipe.poll(self._timeout_s):
            raise _TookTooLong
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
        except _OTHER_END_GONE:
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

    with suppress(*_OTHER_END_GONE):  # the parent has closed it, or was killed
        pipe.send(None)
        while True:
            _send(pipe, _answer_next(pipe))


def _answer_next(pipe: Connection) -> tuple[bool, Any]:
    try:
        function, args = pipe.recv()
    except _OTHER_END_GONE:
        raise
    except Exception as error:  # noqa: BLE001 - a call that cannot be unpickled here; the parent raises it
        return False, error
    return _outcome(function, args)


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
