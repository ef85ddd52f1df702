"""Ordered answers and the inbox alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_server.streams import Closing, Inbox, answer_in_order

END = object()


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 4))
def test_order_and_bound_hold_whatever_takes_how_long(turns, max_in_flight):
    """However long each answer takes, answers are written in order, and never more are in flight than allowed."""
    inside, most, written = 0, 0, []

    async def run() -> None:
        work = iter(enumerate(turns))

        async def answer(number: int, wait: int) -> int:
            for _ in range(wait):
                await asyncio.sleep(0)
            return number

        async def next_task() -> asyncio.Task[int] | None:
            nonlocal inside, most
            found = next(work, None)
            if found is None:
                return None
            inside += 1
            most = max(most, inside)
            return asyncio.create_task(answer(*found))

        async def write(number: int) -> None:
            nonlocal inside
            await asyncio.sleep(0)
            inside -= 1
            written.append(number)

        await answer_in_order(next_task, write, max_in_flight=max_in_flight)

    asyncio.run(run())
    assert written == list(range(len(turns)))
    assert most <= max_in_flight


async def test_error_of_reading_comes_after_the_answers():
    """What was read before an error is answered before the error is raised."""
    written: list[int] = []
    numbers = iter([1, 2])

    async def value(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    async def next_task() -> asyncio.Task[int]:
        number = next(numbers, None)
        if number is None:
            raise ValueError("broken")
        return asyncio.create_task(value(number))

    async def write(number: int) -> None:
        written.append(number)

    with pytest.raises(ValueError, match="broken"):
        await answer_in_order(next_task, write, max_in_flight=8)
    assert written == [1, 2]


async def test_failed_write_cancels_the_rest():
    """When an answer cannot be written, nothing goes on in the background."""
    tasks: list[asyncio.Task[Any]] = []

    async def next_task() -> asyncio.Task[Any]:
        task = asyncio.create_task(asyncio.sleep(0 if not tasks else 60))
        tasks.append(task)
        return task

    async def write(_: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await answer_in_order(next_task, write, max_in_flight=3)
    assert all(task.done() for task in tasks)


async def test_inbox_ends_with_the_caller():
    """After the caller's last message the inbox is at its end, and the caller ended it."""
    messages = iter(["a", "b", END])

    async def read() -> Any:
        return next(messages)

    inbox: Inbox[str] = Inbox(read, END, Closing())
    assert [await inbox.next(), await inbox.next(), await inbox.next()] == ["a", "b", None]
    assert not inbox.cut_off


async def test_closing_wakes_a_waiting_inbox():
    """Closing ends an inbox that waits for a message, and every one opened after."""
    closing = Closing()

    async def read() -> Any:
        await asyncio.sleep(60)

    inbox: Inbox[str] = Inbox(read, END, closing)
    waiting = asyncio.create_task(inbox.next())
    await asyncio.sleep(0)
    closing.close()
    assert await waiting is None
    assert inbox.cut_off
    assert await Inbox(read, END, closing).next() is None


async def test_cancelling_a_reader_is_not_closing():
    """A reader that is cancelled for another reason stays cancelled."""

    async def read() -> Any:
        await asyncio.sleep(60)

    inbox: Inbox[str] = Inbox(read, END, Closing())
    waiting = asyncio.create_task(inbox.next())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not inbox.cut_off
