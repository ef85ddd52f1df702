"""Any iterable as an asynchronous one, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Step = Callable[[], None]


async def iterate_in_thread(items: Iterable[T]) -> AsyncIterator[T]:
    """Iterate on one thread beside the loop: the caller's generator may walk a slow disk, wait, or call us.

    The thread is a daemon: one that waits for an item for ever does not keep the process from ending.
    """
    loop, end, iterator = asyncio.get_running_loop(), object(), iter(items)
    steps: SimpleQueue[_Step | None] = SimpleQueue()
    threading.Thread(target=_work, args=(steps,), name="deepmcat-items", daemon=True).start()
    try:
        while True:
            taken: asyncio.Future[Any] = loop.create_future()
            steps.put(lambda taken=taken: _take(loop, taken, iterator, end))  # type: ignore[misc]
            if (item := await taken) is end:
                return
            yield item
    finally:
        steps.put(None)


def _work(steps: SimpleQueue[_Step | None]) -> None:
    while (step := steps.get()) is not None:
        step()


def _take(loop: asyncio.AbstractEventLoop, taken: asyncio.Future[Any], iterator: Any, end: object) -> None:
    try:
        item, error = next(iterator, end), None
    except BaseException as raised:  # noqa: BLE001 - whatever the caller's iterable raises is the caller's
        item, error = None, raised
    try:
        loop.call_soon_threadsafe(_settle, taken, item, error)
    except RuntimeError:
        return  # the loop has closed meanwhile: nobody waits any more


def _settle(taken: asyncio.Future[Any], item: Any, error: BaseException | None) -> None:
    if taken.done():  # nobody waits for it any more
        return
    if error is None:
        taken.set_result(item)
    else:
        taken.set_exception(error)
