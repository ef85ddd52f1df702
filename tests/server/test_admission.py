"""Permits at the door."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_server.admission import Admission
from deepmcat_server.errors import ServerBusy


async def test_refuses_when_full():
    """Over the number of images, or over the bytes, `enter_now` refuses and says which; a permit back makes room."""
    admission = Admission(max_images=2, max_bytes=100)
    first = admission.enter_now(60)
    with pytest.raises(ServerBusy, match=r"has 60 bytes of images inside and takes 100 \(max_pending_bytes\)"):
        admission.enter_now(41)
    with admission.enter_now(40), pytest.raises(ServerBusy, match=r"has 2 images inside and takes 2 \(max_queue\)"):
        admission.enter_now(0)
    first.release()
    first.release()
    assert admission.images == 0


async def test_an_image_over_the_bytes_gets_in_alone():
    """One image larger than all the room is not refused forever."""
    admission = Admission(max_images=2, max_bytes=100)
    with admission.enter_now(500), pytest.raises(ServerBusy):
        admission.enter_now(1)


async def test_first_come_first_admitted():
    """Those who wait get in in order, a small one does not pass a large one, and nobody jumps the queue."""
    admission = Admission(max_images=9, max_bytes=10)
    inside = admission.enter_now(8)
    large = asyncio.create_task(admission.enter(9))
    small = asyncio.create_task(admission.enter(1))
    await asyncio.sleep(0)
    with pytest.raises(ServerBusy, match="2 images of streams waiting"):
        admission.enter_now(1)
    assert not large.done()
    inside.release()
    await asyncio.gather(large, small)
    assert admission.images == 2


async def test_leaving_the_queue_lets_the_next_in():
    """When the head of the queue gives up, the one behind is admitted if it fits."""
    admission = Admission(max_images=9, max_bytes=10)
    admission.enter_now(5)
    large = asyncio.create_task(admission.enter(9))
    small = asyncio.create_task(admission.enter(1))
    await asyncio.sleep(0)
    large.cancel()
    await small
    assert large.cancelled()


async def test_room_given_to_one_who_just_left_is_not_lost():
    """Admitted and cancelled in the same turn of the loop: the room goes on to the next."""
    admission = Admission(max_images=1, max_bytes=10)
    inside = admission.enter_now(1)
    leaving = asyncio.create_task(admission.enter(1))
    following = asyncio.create_task(admission.enter(1))
    await asyncio.sleep(0)
    inside.release()
    leaving.cancel()
    await following
    assert (leaving.cancelled(), admission.images) == (True, 1)


@given(st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.integers(0, 3)), max_size=30))
def test_room_always_comes_back(steps):
    """Whatever is entered, cancelled and released, the bounds hold and in the end the room is free."""

    async def run() -> None:
        admission = Admission(max_images=3, max_bytes=20)

        async def image(size: int, turns: int) -> None:
            with await admission.enter(size):
                assert admission.images <= 3
                for _ in range(turns):
                    await asyncio.sleep(0)

        tasks = []
        for size, cancelled, turns in steps:
            tasks.append(asyncio.create_task(image(size, turns)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert admission.images == 0
        admission.enter_now(20).release()

    asyncio.run(run())
