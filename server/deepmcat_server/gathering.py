"""Calls that come while others run go together in the next run: one hop to a thread for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Gatherer(Generic[Argument, Result]):
    """Calls `function` in a thread of its own, with the arguments of all who wait; it returns as many results.

    Where it raises for several, each is tried alone, so that only the one at fault gets the error. Used on the event
    loop only.
    """

    def __init__(self, function: Callable[[list[Argument]], list[Result]], *, name: str) -> None:
        self._function = function
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: list[tuple[Argument, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def call(self, argument: Argument) -> Result:
        """The result for one argument. Raises what the function raises for it."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((argument, result))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await result

    def close(self) -> None:
        """End the thread, after what it is doing."""
        self._thread.shutdown()

    async def _run(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                if error := await self._answer(together):
                    for one in together:
                        if len(together) == 1 or (error := await self._answer([one])):
                            _fail(one[1], error)
        finally:
            self._runner = None

    async def _answer(self, calls: list[tuple[Argument, asyncio.Future[Result]]]) -> Exception | None:
        """Answer calls of which somebody still waits; the error where there is no answer."""
        calls = [call for call in calls if not call[1].done()]
        if not calls:
            return None
        arguments = [argument for argument, _ in calls]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._function, arguments)
        except Exception as error:  # noqa: BLE001  # the caller's, whoever it concerns
            return error
        for (_, waiting), result in zip(calls, results, strict=True):
            if not waiting.done():
                waiting.set_result(result)
        return None


def _fail(waiting: asyncio.Future[Result], error: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(error)
