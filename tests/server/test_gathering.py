"""The gatherer alone: who goes together, and what an error costs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deepmcat_server.gathering import Gatherer


class Work:
    """Doubles numbers, several at once; can be held, and does not like 13."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.runs.append(numbers)
        assert self.free.wait(20)
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


async def test_those_who_wait_go_together(until):
    """While one run lasts the others wait, and the next run has all of them; each gets its own result."""
    work = Work()
    work.free.clear()
    gatherer = Gatherer(work, name="test")
    first = asyncio.create_task(gatherer.call(1))
    await until(lambda: work.runs == [[1]])
    rest = [asyncio.create_task(gatherer.call(number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    work.free.set()

    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
    assert work.runs == [[1], [2, 3, 4]]
    gatherer.close()


async def test_only_the_one_at_fault_gets_the_error():
    """Of several, one that fails fails alone; the gatherer goes on."""
    gatherer = Gatherer(Work(), name="test")

    found = await asyncio.gather(*(gatherer.call(number) for number in (12, 13, 14)), return_exceptions=True)

    assert (found[0], type(found[1]), found[2]) == (24, ValueError, 28)
    with pytest.raises(ValueError, match="13"):
        await gatherer.call(13)
    assert await gatherer.call(1) == 2
    gatherer.close()


async def test_who_leaves_is_not_worked_for(until):
    """A call that is cancelled while it waits is not in the next run, and disturbs nobody."""
    work = Work()
    work.free.clear()
    gatherer = Gatherer(work, name="test")
    first, leaving, last = (asyncio.create_task(gatherer.call(number)) for number in (1, 2, 3))
    await until(lambda: bool(work.runs))
    second = asyncio.create_task(gatherer.call(4))
    gone = asyncio.create_task(gatherer.call(5))
    await asyncio.sleep(0)
    leaving.cancel()
    gone.cancel()
    await asyncio.sleep(0)
    work.free.set()

    assert await asyncio.gather(first, last, second) == [2, 6, 8]
    assert work.runs == [[1, 2, 3], [4]]
    gatherer.close()
