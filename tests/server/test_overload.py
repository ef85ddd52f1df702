"""Overload, in virtual time: admission, decoding and batching as they are, with a simulated device and callers.

Nothing sleeps: the event loop's clock jumps to the next thing that is due. So the figures are the same on any machine.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import selectors
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deepmcat_core.frame import RawPlane
from deepmcat_core.planes import Planes, ReadOptions
from deepmcat_server.admission import Admission, Arrival
from deepmcat_server.batcher import Batcher
from deepmcat_server.decoding import Decoder
from deepmcat_server.errors import ServerBusy
from deepmcat_server.forecast import Forecaster

MAX_BATCH = 8
BATCH_S = 0.020
CAPACITY_PER_S = MAX_BATCH / BATCH_S  # of frames
DEADLINE_S = 0.5


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while anything can be done, and then jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # for a thread: that of the loop's default executor, at the end
            ready = super().select(10)
            assert ready, "everybody waits for nothing"
            return ready
        ready = super().select(0)
        if not ready:
            self._loop.now += timeout
        return ready


class Device(Executor):
    """The device's thread: one batch after the other, each done `seconds` of its frames after it has begun."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.frames = 0
        self._behind: deque[Callable[[], None]] = deque()
        self._busy = False

    def submit(self, function: Any, /, *args: Any, **_: Any) -> Future[Any]:
        (batch,) = args
        frames = sum(len(item.planes) for item in batch)
        self.frames += frames
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def begin() -> None:
            outcome, loop = function(batch), asyncio.get_running_loop()
            _end_later(future, self.seconds(frames), lambda: outcome._replace(ended=loop.time()))
            future.add_done_callback(lambda _: self._next())

        self._behind.append(begin)
        if not self._busy:
            self._next()
        return future

    def _next(self) -> None:
        self._busy = bool(self._behind)
        if self._behind:
            self._behind.popleft()()

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Nothing to end."""


class Pool:
    """Decoding workers, first come, first served: an image takes `seconds`, and has as many frames as it has rows."""

    def __init__(self, workers: int, seconds: float) -> None:
        self._free = [0.0] * workers
        self._seconds = seconds

    def submit(self, source: RawPlane, options: ReadOptions) -> Future[Planes]:
        now = asyncio.get_running_loop().time()
        ends = max(heapq.heappop(self._free), now) + self._seconds
        heapq.heappush(self._free, ends)
        planes = np.zeros((source.rows, 2, 2), np.uint8)
        indices = tuple(range(source.rows))
        answer = Planes(
            planes=planes, frame_indices=indices, total_frames=source.rows, format="", decoder="", flags=frozenset()
        )
        return _later(ends - now, lambda: answer)

    def close(self) -> None:
        """Nothing to end."""


def _later(seconds: float, function: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    _end_later(future, seconds, function)
    return future


def _end_later(future: Future[Any], seconds: float, function: Callable[[], Any]) -> None:
    def end() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    asyncio.get_running_loop().call_later(seconds, end)


def _embed(images: np.ndarray) -> np.ndarray:
    return np.ones((len(images), 1), np.float32)


@dataclass
class Outcome:
    """What became of the images of one caller."""

    offered: int = 0
    answered: int = 0
    frames: int = 0
    late: int = 0
    took_s: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    retries_s: list[float] = field(default_factory=list)

    @property
    def in_time(self) -> float:
        return self.answered / (self.answered + self.late)

    def worst_s(self, share: float = 0.99) -> float:
        return sorted(self.took_s)[int(share * (len(self.took_s) - 1))]


class World:
    """A server in small, and callers that send at given times whatever became of what they sent before."""

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda frames: BATCH_S,
        *,
        workers: int = 8,
        decode_s: float = 0.0005,
        max_batch: int = MAX_BATCH,
        budget_s: float = 2.0,
        max_images: int = 1024,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        clock = self.loop.time
        self.device = Device(seconds)
        self.decoder = Decoder(Pool(workers, decode_s), workers, clock=clock)
        self.batcher = Batcher(_embed, max_batch=max_batch, thread=self.device, clock=clock)
        self.forecaster = Forecaster(self.decoder, self.batcher, clock=clock)
        self.refusals: Counter[str] = Counter()
        self.admission = Admission(
            max_images=max_images,
            max_bytes=2**30,
            budget_s=budget_s,
            clock=clock,
            rng=random.Random(1),
            on_refusal=lambda reason: self.refusals.update([reason]),
        )
        self.outcomes: dict[str, Outcome] = {}

    def arrival(self, caller: str, timeout_s: float, frames: int) -> Arrival:
        return Arrival(
            caller=caller,
            size_bytes=4,
            frames=frames,
            cost=frames,
            deadline=self.loop.time() + timeout_s,
            forecaster=self.forecaster,
        )

    async def call(self, caller: str, *, frames: int = 1, timeout_s: float = DEADLINE_S, at_most: int = 16) -> None:
        """One unary call."""
        outcome = self.outcomes.setdefault(caller, Outcome())
        outcome.offered += 1
        try:
            permit = self.admission.enter_now(self.arrival(caller, timeout_s, at_most))
        except ServerBusy as error:
            outcome.retries_s.append(error.retry_s or 0.0)
            return
        await self.run(outcome, permit, frames)

    async def item(self, caller: str, *, frames: int = 1, timeout_s: float = 30.0) -> None:
        """One image of a stream."""
        outcome = self.outcomes.setdefault(caller, Outcome())
        outcome.offered += 1
        try:
            async with asyncio.timeout(timeout_s):
                permit = await self.admission.enter(self.arrival(caller, timeout_s, 16))
        except (ServerBusy, TimeoutError):
            outcome.late += 1
            return
        await self.run(outcome, permit, frames)

    async def run(self, outcome: Outcome, permit: Any, frames: int) -> None:
        began = self.loop.time()
        source = RawPlane(rows=frames, columns=1, sample_type="uint8", data=b"1234")
        try:
            with permit:
                async with asyncio.timeout_at(permit.deadline):
                    permit.begin()
                    planes = await self.decoder.read(
                        source, ReadOptions(), caller=permit.caller, deadline=permit.deadline
                    )
                    permit.decoded(len(planes.planes))
                    await self.batcher.embed(planes.planes, caller=permit.caller, deadline=permit.deadline)
                    permit.answered()
        except TimeoutError:
            outcome.late += 1
            return
        outcome.answered += 1
        outcome.frames += frames
        outcome.took_s.append(self.loop.time() - began)
        outcome.answered_at.append(self.loop.time())

    async def send(self, times: Iterator[float], make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Open loop: what is due is sent."""
        tasks = []
        began = self.loop.time()
        for at in times:
            await asyncio.sleep(began + at - self.loop.time())
            tasks.append(asyncio.create_task(make()))
        await asyncio.gather(*tasks)


def poisson(rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Times of arrivals that know nothing of each other."""
    at = rng.expovariate(rate)
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


def bursts(rate: float, seconds: float, size: int) -> Iterator[float]:
    """So many at once, with pauses."""
    for number in range(int(rate * seconds / size)):
        yield from itertools.repeat(number * size / rate, size)


def simulate(script: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(script())


SECONDS = 5.0
LOAD = 2.5


async def capacity(frames: tuple[int, ...]) -> float:
    """The frames a second that the device does of such images where they never run out and nobody is in a hurry."""
    world, rng = World(), random.Random(3)
    async with world.decoder, world.batcher:
        await world.send(itertools.repeat(0.0, 800), lambda: world.item("one", frames=rng.choice(frames)))
    (outcome,) = world.outcomes.values()
    assert outcome.answered == 800
    return outcome.frames / (outcome.answered_at[-1] - 1000.0)


@pytest.mark.parametrize("kind", ["steady", "bursts"])
@pytest.mark.parametrize("frames", [(1,), (1, 1, 1, 2, 5), (1, 3, 12)], ids=["single", "few", "many"])
def test_overload_costs_nobody_an_answer(kind, frames):
    """At 2.5 times capacity: goodput ≥ 95 %, ≥ 99 % of admitted calls in time, ≥ 97 % of executed frames useful.

    Of images with several frames ≥ 98 % in time: how many they have is known only when they are decoded.
    """

    async def script() -> tuple[World, float]:
        world, rng = World(), random.Random(3)
        per_s = LOAD * CAPACITY_PER_S * len(frames) / sum(frames)
        times = poisson(per_s, SECONDS, rng) if kind == "steady" else bursts(per_s, SECONDS, round(per_s / 5))
        async with world.decoder, world.batcher:
            await world.send(times, lambda: world.call("one", frames=rng.choice(frames)))
        return world, world.loop.time() - 1000.0

    full = simulate(lambda: capacity(frames))
    world, took_s = simulate(script)
    (outcome,) = world.outcomes.values()
    assert outcome.frames / took_s >= 0.95 * full
    assert outcome.in_time >= (0.99 if frames == (1,) else 0.98)
    assert outcome.frames >= 0.97 * world.device.frames


def test_overload_by_decoding_costs_nobody_an_answer():
    """The same where decoding is what limits: 2 workers of 20 ms an image, and a device that is never busy."""

    async def script() -> World:
        world = World(lambda frames: 0.001, workers=2, decode_s=0.020)
        async with world.decoder, world.batcher:
            await world.send(poisson(250, SECONDS, random.Random(2)), lambda: world.call("one"))
        return world

    (outcome,) = simulate(script).outcomes.values()
    assert outcome.answered >= 0.95 * 100 * SECONDS
    assert outcome.in_time >= 0.99


def test_greedy_caller_delays_nobody():
    """Beside a caller with thousands waiting, another's calls are all let in, and take a couple of batch times."""

    async def script() -> World:
        world = World()
        rng = random.Random(5)
        async with world.decoder, world.batcher:
            greedy = world.send(itertools.repeat(0.0, 1500), lambda: world.item("greedy"))
            calls = world.send(poisson(1.5 * CAPACITY_PER_S, 5.0, rng), lambda: world.call("loud"))
            polite = world.send((0.5 + at for at in poisson(20, 4.0, rng)), lambda: world.call("polite"))
            await asyncio.gather(greedy, calls, polite)
        return world

    world = simulate(script)
    polite, loud, greedy = (world.outcomes[caller] for caller in ("polite", "loud", "greedy"))
    assert polite.answered == polite.offered > 50
    assert polite.worst_s() <= 3.5 * BATCH_S
    assert loud.in_time >= 0.99
    assert greedy.answered == greedy.offered
    # Work goes on whatever the shares: in the 5 s of overload the device did all it could.
    ended = [at for outcome in world.outcomes.values() for at in outcome.answered_at if at <= 1005.0]
    assert len(ended) >= 0.97 * 5 * CAPACITY_PER_S


def test_fifty_streams_of_one_caller_are_one_caller():
    """A caller gains nothing by opening more streams: two callers with work get half each."""

    async def script() -> World:
        world = World(max_images=64)

        async def stream(caller: str) -> None:
            for _ in range(40):
                await world.item(caller)

        async with world.decoder, world.batcher:
            many = [asyncio.create_task(stream("many")) for _ in range(50)]
            few = [asyncio.create_task(stream("few")) for _ in range(20)]
            await asyncio.gather(*many, *few)
        return world

    world = simulate(script)
    many, few = world.outcomes["many"], world.outcomes["few"]
    end = few.answered_at[-1]
    assert 0.9 <= sum(at <= end for at in many.answered_at) / few.answered <= 1.2


def test_streams_wait_where_calls_are_refused():
    """An image of a stream is never refused because the server is full, as long as its own time allows."""

    async def script() -> World:
        world = World(budget_s=0.2)
        async with world.decoder, world.batcher:
            await world.send(itertools.repeat(0.0, 2000), lambda: world.item("one"))
        return world

    world = simulate(script)
    outcome = world.outcomes["one"]
    assert (outcome.answered, outcome.late) == (2000, 0)
    assert outcome.worst_s(1.0) <= 0.2 + BATCH_S  # from being let in


def test_stream_item_that_cannot_be_in_time_is_refused():
    """An image of a stream whose own time is too short is refused before it costs work."""

    async def script() -> World:
        world = World()
        async with world.decoder, world.batcher:
            await world.send(itertools.repeat(0.0, 40), lambda: world.item("one"))
            long = world.send(itertools.repeat(0.0, 200), lambda: world.item("one"))
            short = world.send(itertools.repeat(0.001, 5), lambda: world.item("one", timeout_s=0.1))
            await asyncio.gather(long, short)
        return world

    world = simulate(script)
    assert world.outcomes["one"].late == 5
    assert world.device.frames == 240


def test_budget_bounds_the_wait_of_calls_without_deadline():
    """A call without a deadline is refused where it would wait over the budget, and those let in wait no longer."""

    async def script() -> World:
        world = World(budget_s=0.3)
        async with world.decoder, world.batcher:
            times = poisson(LOAD * CAPACITY_PER_S, SECONDS, random.Random(2))
            await world.send(times, lambda: world.call("one", timeout_s=600.0))
        return world

    world = simulate(script)
    outcome = world.outcomes["one"]
    assert outcome.worst_s() <= 0.3 + 2 * BATCH_S
    assert outcome.answered >= 0.95 * CAPACITY_PER_S * SECONDS
    assert world.refusals["budget"] > 0


def test_budget_shorter_than_a_batch_does_not_starve_the_device():
    """Where a batch takes longer than the budget, two batches are let in all the same."""

    async def script() -> World:
        world = World(lambda frames: 1.0, budget_s=0.1)
        async with world.decoder, world.batcher:
            await world.send(poisson(30, 60.0, random.Random(2)), lambda: world.call("one", timeout_s=600.0))
        return world

    (outcome,) = simulate(script).outcomes.values()
    assert outcome.answered >= 0.9 * 60 * MAX_BATCH


def test_cold_server_takes_some_and_not_all():
    """Before anything is measured a batch may wait, and no more; then all is as ever."""

    async def script() -> World:
        world = World()
        async with world.decoder, world.batcher:
            await world.send(itertools.repeat(0.0, 500), lambda: world.call("one", timeout_s=600.0))
            await world.send(itertools.repeat(0.0, 50), lambda: world.call("later"))
        return world

    world = simulate(script)
    assert MAX_BATCH <= world.outcomes["one"].answered <= 6 * MAX_BATCH
    assert world.outcomes["later"].answered == 50


def test_a_call_that_was_not_read_is_refused_for_its_deadline_alone():
    """The wait is over the budget of what needs no decoding; what is not read may need it, and wait less behind it."""

    async def script() -> None:
        world = World(lambda frames: 1.0, max_batch=1, budget_s=0.1)
        planes = np.zeros((1, 2, 2), np.uint8)
        async with world.decoder, world.batcher:
            await world.batcher.embed(planes)
            waiting = [asyncio.create_task(world.batcher.embed(planes, caller="one")) for _ in range(5)]
            await asyncio.sleep(0.1)
            patient, hurried = (world.arrival("one", timeout_s, 1) for timeout_s in (60.0, 4.0))
            world.admission.check_unread([hurried])  # nothing is inside
            with world.admission.enter_now(Arrival(caller="another", size_bytes=4)):
                with pytest.raises(ServerBusy, match="queue_budget_s"):
                    world.admission.enter_now(patient)
                world.admission.check_unread([patient])
                with pytest.raises(ServerBusy, match="are left for it"):
                    world.admission.check_unread([hurried])
            await asyncio.gather(*waiting)
        assert world.refusals == {"budget": 1, "deadline": 1}

    simulate(script)


def test_slow_patch_is_over_when_it_is_over():
    """A device that was a hundred times slower for a while gets its work back within seconds of being well again."""

    async def script() -> World:
        world = World(lambda frames: 2.0 if 1005.0 <= world.loop.time() < 1010.0 else BATCH_S)
        async with world.decoder, world.batcher:
            times = poisson(LOAD * CAPACITY_PER_S, 15.0, random.Random(2))
            await world.send(times, lambda: world.call("one"))
        return world

    world = simulate(script)
    outcome = world.outcomes["one"]
    per_second = Counter(int(at - 1000.0) for at in outcome.answered_at)
    assert all(per_second[second] >= 0.95 * CAPACITY_PER_S for second in (1, 2, 3, 4, 13, 14))
    assert outcome.frames >= 0.95 * world.device.frames


def test_refused_callers_come_back_spread_out():
    """Delays grow with what was refused before, so that callers who obey come back at about the rate of the work."""

    async def script() -> World:
        world = World()
        async with world.decoder, world.batcher:
            await world.send(itertools.repeat(0.0, 30), lambda: world.call("one"))
            await world.send(itertools.repeat(0.0, 1000), lambda: world.call("one"))
        return world

    outcome = simulate(script).outcomes["one"]
    spread = sorted(outcome.retries_s)
    assert len(spread) > 700
    assert 0.5 <= (spread[-1] - spread[0]) / (len(spread) / CAPACITY_PER_S) <= 2.0


def test_those_who_leave_are_not_decoded():
    """Images whose callers go, or whose time is over, while they wait for a worker never get to one."""

    async def script() -> tuple[World, int]:
        world = World(workers=1, decode_s=1.0)
        submitted = 0
        pool = world.decoder._pool
        submit = pool.submit

        class Counting:
            def submit(self, source: Any, options: Any) -> Any:
                nonlocal submitted
                submitted += 1
                return submit(source, options)

            def close(self) -> None:
                """Nothing to end."""

        world.decoder = Decoder(Counting(), 1, clock=world.loop.time)
        source = RawPlane(rows=1, columns=1, sample_type="uint8", data=b"1")
        async with world.decoder:
            stay = [asyncio.create_task(world.decoder.read(source, ReadOptions())) for _ in range(2)]
            await asyncio.sleep(0)
            leave = [asyncio.create_task(world.decoder.read(source, ReadOptions())) for _ in range(5)]
            late = asyncio.create_task(world.decoder.read(source, ReadOptions(), deadline=world.loop.time() + 0.5))
            await asyncio.sleep(0)
            assert world.decoder.depth == 6
            for task in leave:
                task.cancel()
            await asyncio.gather(*stay, *leave, late, return_exceptions=True)
            assert isinstance(late.exception(), TimeoutError)
        return world, submitted

    _, submitted = simulate(script)
    assert submitted == 2
