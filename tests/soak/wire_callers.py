"""Callers with clients of their own: at full pace, mostly hostile, that read slowly, and that send slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from .replica import CHUNK_TIMEOUT_S
from .scene import Menu, Scene
from .wire_stream import WireStream

IMAGES = 60  # of a stream
SLOW_CHUNK_BYTES = 200_000


async def hostile(scene: Scene, number: int) -> None:
    """Streams in which two images of three are hostile: each gets its own answer, and so do those between."""
    rng = scene.rng(f"hostile streams {number}")
    menu = Menu(scene, rng, hostile=0.66)
    stream = WireStream(scene=scene, who="hostile streams", rng=rng)
    while await scene.rest(rng.uniform(0, 2)):
        await stream.send([menu.asked() for _ in range(rng.randrange(1, IMAGES))])


async def slow_reader(scene: Scene, number: int) -> None:
    """Streams whose answers are left lying for seconds, now and then."""
    rng = scene.rng(f"slow readers {number}")
    menu = Menu(scene, rng, hostile=0.1)
    stream = WireStream(scene=scene, who="slow readers", rng=rng, before_read=_pauses(rng, 0.05, 5.0))
    while await scene.rest(rng.uniform(0, 2)):
        await stream.send([menu.asked() for _ in range(3 * IMAGES)])


async def slow_sender(scene: Scene, number: int) -> None:
    """Large images, chunk by chunk and slowly, but within what the server waits for one."""
    rng = scene.rng(f"slow senders {number}")
    menu = Menu(scene, rng)
    stream = WireStream(
        scene=scene,
        who="slow senders",
        rng=rng,
        chunk_bytes=SLOW_CHUNK_BYTES,
        before_chunk=_pauses(rng, 0.3, CHUNK_TIMEOUT_S / 4),
    )
    while await scene.rest(rng.uniform(0, 2)):
        await stream.send([menu.large(), menu.file(), menu.file()])


def _pauses(rng: Random, probability: float, longest_s: float) -> Callable[[], Awaitable[None]]:
    async def pause() -> None:
        if rng.random() < probability:
            await asyncio.sleep(rng.uniform(0, longest_s))

    return pause
