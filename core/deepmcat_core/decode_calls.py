"""The calls that wait for a decoding worker."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any


class Call:
    """A function with its arguments, and the future that awaits it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.future: Future[Any] = Future()


class Calls:
    """The calls that wait, first come, first out. One that is cancelled leaves at once, and its image with it."""

    def __init__(self) -> None:
        self._waiting: dict[int, Call] = {}  # in order of arrival; a dict, because calls leave from the middle
        self._numbers = itertools.count()
        self._closed = False
        self._changed = threading.Condition()

    @property
    def is_closed(self) -> bool:
        """Whether no call comes any more."""
        return self._closed

    def put(self, call: Call) -> None:
        """Have a call wait. Raises BrokenExecutor once closed."""
        number = next(self._numbers)
        with self._changed:
            if self._closed:
                raise BrokenExecutor("the decode pool is closed")
            self._waiting[number] = call
            self._changed.notify()
        call.future.add_done_callback(lambda _: self._leave(number))

    def get(self, *, within_s: float) -> Call | None:
        """The next call, as soon as there is one; None where none came in time, and once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, within_s)
            return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None

    def close(self) -> list[Call]:
        """Take no more; what waits is the caller's."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
            self._changed.notify_all()
        return waiting

    def _leave(self, number: int) -> None:
        with self._changed:
            self._waiting.pop(number, None)
