"""The batcher alone: what it joins, what it drops, how it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deepmcat_core.engine import checked_embeddings
from deepmcat_server.batcher import Batcher, BatcherClosed, BatchFailed, BatchReport, Expired
from deepmcat_server.pipeline import logged_embed


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
        await until(lambda: batcher.depth == 2)  # the next batch is full, and with the device already
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
        await until(lambda: batcher.depth == 3)  # and one is with the device, behind the first
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
    now = 0.0
    reports: list[BatchReport] = []

    def embed(images: np.ndarray) -> np.ndarray:
        nonlocal now
        now += 2
        return np.zeros((len(images), 1), np.float32)

    batcher = Batcher(embed, max_batch=8, on_batch=reports.append, clock=lambda: now)
    waiting = []
    for number in range(2):
        waiting.append(asyncio.create_task(batcher.embed(planes(number, frames=2))))
        await asyncio.sleep(0)
        now += 1
    now += 3
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
        await until(lambda: batcher.depth == 1)  # those who will leave are with the device, behind the first

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


class Poisoned:
    """Fails on every batch that has one of some images in it; what it gives for others is their first pixel."""

    def __init__(self, *poison: int, error: type[Exception] = RuntimeError) -> None:
        self._poison = poison
        self._error = error
        self.batches: list[int] = []

    def embed(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        if set(self._poison) & set(images[:, 0, 0, 0].tolist()):
            raise self._error
        return images[:, 0, 0, :1].astype(np.float32)


async def together(batcher: Batcher, values: range) -> list[np.ndarray | BaseException]:
    """What becomes of one batch of these images."""
    tasks = [asyncio.create_task(batcher.embed(planes(v))) for v in values]
    await asyncio.sleep(0)
    async with batcher:
        return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("poison", range(16))
async def test_poison_fails_alone(poison):
    """One image that no batch survives fails; the others of its batch are answered, each run at most 1 + log2 times."""
    engine = Poisoned(poison)
    answers = await together(Batcher(engine.embed, max_batch=16), range(16))

    assert [v for v, answer in enumerate(answers) if isinstance(answer, BatchFailed)] == [poison]
    assert [float(a[0, 0]) for a in answers if isinstance(a, np.ndarray)] == [v for v in range(16) if v != poison]
    assert sum(engine.batches) <= 16 + 2 * 16
    assert len(engine.batches) == 1 + 2 * 4


async def test_two_poisons_of_one_half_fail_alone():
    """Several images at fault are all found where a part of the batch works."""
    answers = await together(Batcher(Poisoned(1, 2).embed, max_batch=8), range(8))
    assert [v for v, answer in enumerate(answers) if isinstance(answer, BatchFailed)] == [1, 2]


async def test_device_that_fails_everything_is_asked_twice_more():
    """Where both halves of a batch fail it is the device, and nothing is tried again beyond that."""
    engine = Poisoned(*range(16))
    answers = await together(Batcher(engine.embed, max_batch=16), range(16))
    assert all(isinstance(answer, BatchFailed) for answer in answers)
    assert engine.batches == [16, 8, 8]


async def test_row_that_is_no_number_fails_alone():
    """An embedding that is not finite fails its image, and nothing is run again for it."""
    batches = []

    def embed(images: np.ndarray) -> np.ndarray:
        batches.append(len(images))
        rows = images[:, 0, 0, :1].astype(np.float32)
        rows[rows == 3] = np.nan
        return rows

    answers = await together(Batcher(embed, max_batch=8), range(8))
    assert [v for v, answer in enumerate(answers) if isinstance(answer, BatchFailed)] == [3]
    assert batches == [8]


class Small:
    """A device with memory for so many images at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.batches: list[int] = []

    def embed(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        if len(images) > self._most:
            raise MemoryError
        return images[:, 0, 0, :1].astype(np.float32)


async def test_out_of_memory_halves_the_batch_and_is_remembered():
    """A batch too large for the device is run in parts that fit, all are answered, and later batches are not larger."""
    engine = Small(3)
    batcher = Batcher(engine.embed, max_batch=8)
    tasks = [asyncio.create_task(batcher.embed(planes(v))) for v in range(12)]
    tasks.append(asyncio.create_task(batcher.embed(planes(99, frames=5))))
    await asyncio.sleep(0)
    async with batcher:
        answers = await asyncio.gather(*tasks)

    assert [int(a[0, 0]) for a in answers] == [*range(12), 99]
    assert engine.batches == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 1]
    assert batcher.max_batch == 2


async def test_device_without_memory_for_one_image_fails_it():
    """Where not even one image fits, it fails, and the server goes on."""
    engine = Small(0)
    answers = await together(Batcher(engine.embed, max_batch=4), range(4))
    assert all(isinstance(answer, BatchFailed) for answer in answers)
    assert len(engine.batches) <= 9


async def test_expired_item_is_not_run():
    """An item whose time is over when its batch begins is told so, and the device does not see it."""
    now, engine = 0.0, Engine()
    batcher = Batcher(engine.embed, max_batch=8, clock=lambda: now)
    late = asyncio.create_task(batcher.embed(planes(1), deadline=5.0))
    other = asyncio.create_task(batcher.embed(planes(2), deadline=6.0))
    await asyncio.sleep(0)
    now = 5.0
    async with batcher:
        answers = await asyncio.gather(late, other, return_exceptions=True)

    assert isinstance(answers[0], Expired)
    assert engine.batches == [1]


async def test_callers_share_a_batch(until):
    """While one caller has many waiting, another's image is in the next batch that is not full yet when it comes."""
    engine = Engine()
    engine.free.clear()
    async with Batcher(engine.embed, max_batch=2) as batcher:
        first = asyncio.create_task(batcher.embed(planes(0), caller="greedy"))
        await until(lambda: engine.batches == [1])
        order: list[str] = []
        tasks = [first]
        for caller in ["greedy"] * 6 + ["polite"]:
            task = asyncio.create_task(batcher.embed(planes(1), caller=caller))
            task.add_done_callback(lambda _, caller=caller: order.append(caller))
            tasks.append(task)
        await until(lambda: batcher.depth == 5)  # two of the greedy one's are with the device, behind the first
        engine.free.set()
        await asyncio.gather(*tasks)

    assert "polite" in order[:4]


async def test_embeddings_that_are_none_fail_their_image_alone(engine):
    """Where an engine gives one row that is no unit vector, that image fails, and the others have their embeddings."""

    class Bent:
        name, device, dim, precision = engine.name, engine.device, engine.dim, engine.precision

        def embed(self, images: np.ndarray) -> np.ndarray:
            rows = np.eye(8, dtype=np.float32)[images[:, 0, 0, 0]]
            rows[3] *= 2
            return checked_embeddings(rows, (len(images), 8))

        def warm(self, batches: object) -> None:
            """Nothing to warm."""

        def close(self) -> None:
            """Nothing to free."""

    answers = await together(Batcher(logged_embed(Bent().embed), max_batch=8), range(8))
    assert [v for v, answer in enumerate(answers) if isinstance(answer, BatchFailed)] == [3]
    assert all(np.argmax(answer) == v for v, answer in enumerate(answers) if v != 3)


async def test_full_batch_is_handed_over_and_a_part_of_one_is_not(until):
    """Behind a batch that runs the device has the next one where that is full; what is not full can still be joined."""
    engine = Engine()
    engine.free.clear()
    async with Batcher(engine.embed, max_batch=2) as batcher:
        tasks = [asyncio.create_task(batcher.embed(planes(0)))]
        await until(lambda: engine.batches == [1])
        tasks += [asyncio.create_task(batcher.embed(planes(v))) for v in (1, 2, 3)]
        await until(lambda: batcher.depth == 1)
        tasks.append(asyncio.create_task(batcher.embed(planes(4))))
        await until(lambda: batcher.depth == 2)  # no third batch is handed over behind the second
        engine.free.set()
        answers = await asyncio.gather(*tasks)

    assert engine.batches == [1, 2, 2]
    assert [int(a[0, 0]) for a in answers] == [0, 1, 2, 3, 4]


async def test_who_leaves_after_the_batch_was_handed_over_is_not_run(until):
    """The device leaves out those of its next batch who have stopped waiting, or whose time is over by then."""
    engine = Engine()
    engine.free.clear()
    async with Batcher(engine.embed, max_batch=3) as batcher:
        first = asyncio.create_task(batcher.embed(planes(0)))
        await until(lambda: engine.batches == [1])
        stays, leaves = (asyncio.create_task(batcher.embed(planes(v))) for v in (1, 2))
        late = asyncio.create_task(batcher.embed(planes(3), deadline=time.monotonic() + 0.05))
        await until(lambda: batcher.depth == 0)
        leaves.cancel()
        await asyncio.sleep(0.1)
        engine.free.set()
        await first
        assert (await stays).tolist() == [[1]]
        with pytest.raises(Expired):
            await late

    assert engine.batches == [1, 1]


async def test_a_batch_is_not_full_of_those_whose_time_is_over(until):
    """Who waits for nothing any more makes no batch full: the next one can still be joined, and is when it is full."""
    now, engine = 0.0, Engine()
    engine.free.clear()
    async with Batcher(engine.embed, max_batch=2, clock=lambda: now) as batcher:
        tasks = [asyncio.create_task(batcher.embed(planes(0)))]
        await until(lambda: engine.batches == [1])
        late = asyncio.create_task(batcher.embed(planes(1), deadline=5.0))
        await until(lambda: batcher.depth == 1)
        now = 5.0
        tasks.append(asyncio.create_task(batcher.embed(planes(2))))
        await until(late.done)
        assert batcher.depth == 1
        tasks.append(asyncio.create_task(batcher.embed(planes(3))))
        await until(lambda: batcher.depth == 0)
        engine.free.set()
        answers = await asyncio.gather(*tasks)

    assert isinstance(late.exception(), Expired)
    assert engine.batches == [1, 2]
    assert [int(a[0, 0]) for a in answers] == [0, 2, 3]


async def test_a_batch_is_handed_over_in_time_without_anybody_coming(until):
    """Where batch times are known, the next full batch is handed over though nothing happens until it is time."""
    now, engine = 0.0, Engine()

    def embed(images: np.ndarray) -> np.ndarray:
        nonlocal now
        embeddings = engine.embed(images)
        now += 0.05
        return embeddings

    async with Batcher(embed, max_batch=2, clock=lambda: now) as batcher:
        await asyncio.gather(*(batcher.embed(planes(v)) for v in range(2)))
        engine.free.clear()
        tasks = [asyncio.create_task(batcher.embed(planes(v))) for v in range(4)]
        await until(lambda: engine.batches == [2, 2])
        await asyncio.sleep(0.1)
        assert batcher.depth == 2  # by the clock it is not time yet
        now += 0.05
        await until(lambda: batcher.depth == 0)
        assert not any(task.done() for task in tasks)
        engine.free.set()
        await asyncio.gather(*tasks)

    assert engine.batches == [2, 2, 2]


async def test_a_batch_ends_where_the_device_has_done_with_it():
    """How long a batch took is the device's time: an event loop that hears of its end late makes it no longer."""
    now = 0.0
    reports: list[BatchReport] = []

    def embed(images: np.ndarray) -> np.ndarray:
        nonlocal now
        now += 2
        return np.zeros((len(images), 1), np.float32)

    class Unheard(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            nonlocal now
            future = super().submit(*args, **kwargs)
            future.result()
            now += 5
            return future

    async with Batcher(embed, max_batch=2, on_batch=reports.append, clock=lambda: now, thread=Unheard(1)) as batcher:
        await batcher.embed(planes(1))

    assert [report.encode_s for report in reports] == [2.0]
    assert batcher.batch_s(1) == 2.0


async def test_memory_that_two_batches_found_short_is_halved_once(until):
    """A batch handed over before the bound was found says nothing of it: it is run again within the bound."""
    engine = Engine()
    engine.free.clear()

    def embed(images: np.ndarray) -> np.ndarray:
        embeddings = engine.embed(images)
        if len(images) > 2:
            raise MemoryError
        return embeddings

    async with Batcher(embed, max_batch=4) as batcher:
        first = [asyncio.create_task(batcher.embed(planes(v))) for v in range(4)]
        await until(lambda: engine.batches == [4])
        second = [asyncio.create_task(batcher.embed(planes(v))) for v in range(4)]
        await until(lambda: len(engine.batches) == 1 and batcher.depth == 0)
        engine.free.set()
        answers = await asyncio.gather(*first, *second)

    assert [int(a[0, 0]) for a in answers] == [0, 1, 2, 3] * 2
    assert batcher.max_batch == 2


async def test_a_thread_that_cannot_be_had_fails_its_batch_alone():
    """Where a batch cannot be handed over, its images fail, and the next ones are answered."""

    class Short(ThreadPoolExecutor):
        failed = False

        def submit(self, *args, **kwargs):
            if not self.failed:
                self.failed = True
                raise RuntimeError("can't start new thread")
            return super().submit(*args, **kwargs)

    async with Batcher(Engine().embed, max_batch=2, thread=Short(1)) as batcher:
        with pytest.raises(BatchFailed):
            await batcher.embed(planes(1))
        assert (await batcher.embed(planes(2))).tolist() == [[2]]
