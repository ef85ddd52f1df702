"""The batcher alone: what it joins, what it drops, how it ends."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from deepmcat_server.batcher import Batcher, BatcherClosed, BatchFailed, BatchReport


def planes(value: int, frames: int = 1) -> np.ndarray:
    """Planes whose embedding will be their value: (F, 2, 2)."""
    return np.full((frames, 2, 2), value, dtype=np.uint8)


class Engine:
    """Embeds an image as its first pixel; can be held before a batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.threads: set[str] = set()

    def embed(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (1, 2, 2)
        self.batches.append(len(images))
        self.threads.add(threading.current_thread().name)
        assert self.free.wait(20)
        return images[:, 0, 0, :1].astype(np.float32)


async def test_next_batch_is_what_waits(until):
    """While one batch runs the queue fills; then up to max_batch frames go together, whole items only."""
    engine = Engine()
    engine.free.clear()
    async with Batcher(engine.embed, max_batch=4) as batcher:
        first = asyncio.create_task(batcher.embed(planes(1)))
        await until(lambda: engine.batches == [1])
        rest = [asyncio.create_task(batcher.embed(planes(v, frames))) for v, frames in [(2, 2), (3, 1), (4, 2), (5, 9)]]
        await until(lambda: batcher.depth == 4)
        engine.free.set()
        answers = [await task for task in [first, *rest]]

    assert engine.batches == [1, 3, 2, 9]
    assert [a.tolist() for a in answers] == [[[1]], [[2]] * 2, [[3]], [[4]] * 2, [[5]] * 9]
    assert len(engine.threads) == 1


async def test_leaving_answers_what_waits(until):
    """Closing takes no more and answers everything that was taken."""
    engine = Engine()
    engine.free.clear()
    batcher = Batcher(engine.embed, max_batch=1)
    async with batcher:
        tasks = [asyncio.create_task(batcher.embed(planes(v))) for v in range(5)]
        await until(lambda: batcher.depth == 4)
        threading.Timer(0.05, engine.free.set).start()
    answers = await asyncio.gather(*tasks)

    assert [int(a[0, 0]) for a in answers] == [0, 1, 2, 3, 4]
    with pytest.raises(BatcherClosed):
        await batcher.embed(planes(1))


async def test_each_waiter_gets_its_own_failure(until):
    """A failed batch raises in every waiter, a new exception for each, with the device's error as its cause."""
    cause = RuntimeError("out of memory")

    def embed(images: np.ndarray) -> np.ndarray:
        raise cause

    async with Batcher(embed, max_batch=8) as batcher:
        failed = await asyncio.gather(*(batcher.embed(planes(v)) for v in range(3)), return_exceptions=True)

    assert [type(error) for error in failed] == [BatchFailed] * 3
    assert len({id(error) for error in failed}) == 3
    assert all(error.__cause__ is cause for error in failed)


async def test_wrong_number_of_embeddings_is_a_failure():
    """An engine that loses an image cannot give another image its embedding."""
    async with Batcher(lambda images: np.zeros((1, 2), np.float32), max_batch=8) as batcher:
        with pytest.raises(BatchFailed):
            await batcher.embed(planes(1, frames=2))


async def test_reports_say_what_a_batch_was(until):
    """A report has the frames, each item's wait, and the encoder's time, by the clock that was passed in."""
    now = iter([0.0, 1.0, 5.0, 7.0])
    reports: list[BatchReport] = []
    batcher = Batcher(Engine().embed, max_batch=8, on_batch=reports.append, clock=lambda: next(now))
    waiting = [asyncio.create_task(batcher.embed(planes(v, frames=2))) for v in range(2)]
    await asyncio.sleep(0)
    async with batcher:
        await asyncio.gather(*waiting)

    assert reports == [BatchReport(frames=4, waits_s=(5.0, 4.0), encode_s=2.0)]


async def test_batch_of_nobody_is_not_run(until):
    """When everybody in the queue has left, the engine is not asked."""
    engine = Engine()
    engine.free.clear()
    async with Batcher(engine.embed, max_batch=8) as batcher:
        first = asyncio.create_task(batcher.embed(planes(1)))
        await until(lambda: engine.batches == [1])
        leaving = [asyncio.create_task(batcher.embed(planes(v))) for v in range(3)]
        await until(lambda: batcher.depth == 3)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        engine.free.set()
        await first

    assert engine.batches == [1]


@pytest.mark.parametrize("hops", range(4))
@pytest.mark.parametrize("closing", [False, True])
async def test_those_who_leave_take_no_place_from_those_who_wait(until, hops, closing):
    """Callers cancelled in any turn of the loop around the end of a batch keep nobody waiting, at the close neither."""
    engine = Engine()
    engine.free.clear()
    loop = asyncio.get_running_loop()
    async with Batcher(engine.embed, max_batch=2) as batcher:
        first = asyncio.create_task(batcher.embed(planes(1)))
        await until(lambda: engine.batches == [1])
        leaving = [asyncio.create_task(batcher.embed(planes(2))) for _ in range(2)]
        last = asyncio.create_task(batcher.embed(planes(3)))
        await until(lambda: batcher.depth == 3)

        def leave(turns: int) -> None:
            if turns:
                loop.call_soon(leave, turns - 1)
                return
            for task in leaving:
                task.cancel()

        engine.free.set()
        time.sleep(0.05)  # noqa: ASYNC251  # the batch ends while the loop looks away, so that its turns can be counted
        loop.call_soon(leave, hops)
        if not closing:
            assert await asyncio.wait([last], timeout=5) == ({last}, set())

    done, _ = await asyncio.wait([first, last], timeout=5)
    assert done == {first, last}
    assert last.result().tolist() == [[3]]
