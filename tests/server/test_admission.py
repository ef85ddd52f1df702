"""Permits at the door."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_server.admission import Admission, Arrival
from deepmcat_server.errors import ServerBusy


def image(size_bytes: int, caller: str = "one", frames: int = 1) -> Arrival:
    """An image at the door, whose time does not matter."""
    return Arrival(caller=caller, size_bytes=size_bytes, frames=frames)


async def test_refuses_when_full():
    """Over the images, the bytes or the frames, `enter_now` refuses and says which; a permit back makes room."""
    admission = Admission(max_images=2, max_bytes=100, max_frames=20)
    first = admission.enter_now(image(60))
    with pytest.raises(ServerBusy, match=r"has 60 bytes of images inside and takes 100 \(max_pending_bytes\)"):
        admission.enter_now(image(41))
    with pytest.raises(ServerBusy, match=r"has 1 frames inside and takes 20 \(max_pending_frames\)"):
        admission.enter_now(image(1, frames=20))
    with (
        admission.enter_now(image(40)),
        pytest.raises(ServerBusy, match=r"has 2 images inside and takes 2 \(max_queue\)"),
    ):
        admission.enter_now(image(0))
    first.release()
    first.release()
    assert (admission.images, admission.size_bytes, admission.frames) == (0, 0, 0)


async def test_refusals_are_counted_by_why():
    """Whoever counts refusals is told the reason of each, from a closed set."""
    reasons: list[str] = []
    admission = Admission(max_images=2, max_bytes=100, on_refusal=reasons.append)
    admission.enter_now(image(60))
    for size in (41, 41):
        with pytest.raises(ServerBusy):
            admission.enter_now(image(size))
    admission.enter_now(image(1))
    with pytest.raises(ServerBusy):
        admission.enter_now(image(1))
    assert reasons == ["bytes", "bytes", "images"]


async def test_frames_that_an_image_does_not_have_are_given_back():
    """An image counts as the most frames it can have until it is decoded, and then as those that it has."""
    admission = Admission(max_images=9, max_bytes=100, max_frames=20)
    permit = admission.enter_now(image(1, frames=16))
    waiting = asyncio.create_task(admission.enter(image(1, frames=16)))
    await asyncio.sleep(0)
    assert not waiting.done()
    permit.decoded(2)
    await waiting
    assert admission.frames == 18
    permit.release()
    assert admission.frames == 16


async def test_an_image_over_the_bytes_gets_in_alone():
    """One image larger than all the room is not refused forever."""
    admission = Admission(max_images=2, max_bytes=100)
    with admission.enter_now(image(500)), pytest.raises(ServerBusy):
        admission.enter_now(image(1))


async def test_first_come_first_admitted():
    """Those who wait get in in order, a small one does not pass a large one, and nobody jumps the queue."""
    admission = Admission(max_images=9, max_bytes=10)
    inside = admission.enter_now(image(8))
    large = asyncio.create_task(admission.enter(image(9)))
    small = asyncio.create_task(admission.enter(image(1, "another")))
    await asyncio.sleep(0)
    for caller in ("one", "another", "a third"):
        with pytest.raises(ServerBusy, match="2 images of streams waiting"):
            admission.enter_now(image(1, caller))
    assert not large.done()
    inside.release()
    await asyncio.gather(large, small)
    assert admission.images == 2


async def test_one_caller_leaves_room_for_others():
    """A caller that sends without end has four fifths of the room; another gets in at once, though some wait."""
    admission = Admission(max_images=100, max_bytes=10**6)
    greedy = [asyncio.create_task(admission.enter(image(1, "greedy"))) for _ in range(200)]
    await asyncio.sleep(0)
    assert admission.images == 80
    with pytest.raises(ServerBusy, match="as much of this caller"):
        admission.enter_now(image(1, "greedy"))
    polite = [admission.enter_now(image(1, "polite")) for _ in range(10)]
    assert admission.images == 90
    for permit in polite:
        permit.release()
    await asyncio.sleep(0)
    assert admission.images == 80
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)


async def test_callers_take_turns_to_get_in():
    """Where several wait, room goes from one caller to the next, however many one of them has waiting."""
    admission = Admission(max_images=1, max_bytes=10)
    inside, order = admission.enter_now(image(1, "first")), []

    async def enter(caller: str) -> None:
        with await admission.enter(image(1, caller)):
            order.append(caller)

    tasks = [asyncio.create_task(enter(caller)) for caller in ["greedy"] * 4 + ["polite"] * 2]
    await asyncio.sleep(0)
    inside.release()
    await asyncio.gather(*tasks)
    assert order == ["greedy", "polite", "greedy", "polite", "greedy", "greedy"]


async def test_leaving_the_queue_lets_the_next_in():
    """When the head of the queue gives up, the one behind is admitted if it fits."""
    admission = Admission(max_images=9, max_bytes=10)
    admission.enter_now(image(5))
    large = asyncio.create_task(admission.enter(image(9)))
    small = asyncio.create_task(admission.enter(image(1)))
    await asyncio.sleep(0)
    large.cancel()
    await small
    assert large.cancelled()


async def test_room_given_to_one_who_just_left_is_not_lost():
    """Admitted and cancelled in the same turn of the loop: the room goes on to the next."""
    admission = Admission(max_images=1, max_bytes=10)
    inside = admission.enter_now(image(1))
    leaving = asyncio.create_task(admission.enter(image(1)))
    following = asyncio.create_task(admission.enter(image(1)))
    await asyncio.sleep(0)
    inside.release()
    leaving.cancel()
    await following
    assert (leaving.cancelled(), admission.images) == (True, 1)


async def test_those_refused_together_do_not_come_back_together():
    """A refusal says when to come back, each at another time."""
    admission = Admission(max_images=1, max_bytes=10)
    admission.enter_now(image(1))
    waits = []
    for _ in range(50):
        with pytest.raises(ServerBusy) as caught:
            admission.enter_now(image(1))
        waits.append(caught.value.retry_s)
    assert len(set(waits)) == 50
    assert 0.5 <= min(waits) < 0.6 < 0.7 < max(waits) <= 0.75


@given(st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.integers(0, 3), st.sampled_from("ab")), max_size=30))
def test_room_always_comes_back(steps):
    """Whatever is entered, cancelled and released, the bounds hold and in the end the room is free."""

    async def run() -> None:
        admission = Admission(max_images=3, max_bytes=20, max_frames=9)

        async def visit(size: int, turns: int, caller: str) -> None:
            with await admission.enter(image(size, caller, frames=1 + size % 4)) as _:
                assert admission.images <= 3
                for _ in range(turns):
                    await asyncio.sleep(0)

        tasks = []
        for size, cancelled, turns, caller in steps:
            tasks.append(asyncio.create_task(visit(size, turns, caller)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (admission.images, admission.size_bytes, admission.frames) == (0, 0, 0)
        admission.enter_now(image(20)).release()

    asyncio.run(run())
