"""Good callers that use our client: streams and single calls, to both replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from deepmcat_client import AsyncClient, ClientError, RetryPolicy
from deepmcat_client.requests import Options

from .oracle import Asked
from .replica import addresses
from .scene import Menu, Scene

IMAGES = 150  # of a stream
RETRIES = RetryPolicy(attempts=20, restart_s=120, budget=100, budget_per_s=10)
TIMEOUT_S = 60


async def stream(scene: Scene, number: int) -> None:
    """One stream after the other, some of its images hostile."""
    who = "client streams"
    rng = scene.rng(f"{who} {number}")
    menu = Menu(scene, rng, hostile=0.2)
    client = AsyncClient(
        addresses(scene.replicas), timeout_s=TIMEOUT_S, retry=RETRIES, in_flight=24, images_per_call=60
    )
    async with client:
        while await scene.rest(rng.uniform(0, 1)):
            options = Options(top_k=rng.randrange(4), want_embedding=rng.random() < 0.2, frames=rng.choice((0, 2)))
            waiting: list[Asked] = []

            async def images(
                waiting: list[Asked] = waiting, options: Options = options
            ) -> AsyncIterator[tuple[int, object]]:
                for key in range(IMAGES):
                    if scene.over.is_set():
                        return
                    asked = Asked(
                        specimen=menu.asked().specimen, frames=options.frames, top_k=options.top_k,
                        want_embedding=options.want_embedding,
                    )  # fmt: skip
                    waiting.append(asked)
                    scene.ledger.sends(who)
                    yield key, asked.specimen.source
                    await asyncio.sleep(rng.uniform(0, 0.05))

            expected = 0
            try:
                async with aclosing(client.categorize_stream(images(), options)) as answers:
                    async for key, answer in answers:
                        if key != expected:
                            scene.ledger.breaks("order", who, f"answer {key} where {expected} was next")
                        scene.ledger.answered(who, waiting[key], answer)
                        expected += 1
            except ClientError as error:
                for asked in waiting[expected:]:
                    scene.ledger.answered(who, asked, error)


async def call(scene: Scene, number: int) -> None:
    """One call after the other."""
    who = "client calls"
    rng = scene.rng(f"{who} {number}")
    menu = Menu(scene, rng, hostile=0.2)
    async with AsyncClient(addresses(scene.replicas), timeout_s=TIMEOUT_S, retry=RETRIES) as client:
        while await scene.rest(rng.uniform(0, 0.2)):
            asked = menu.asked()
            scene.ledger.sends(who)
            options = Options(top_k=asked.top_k, frames=asked.frames, want_embedding=asked.want_embedding)
            try:
                answer = await client.categorize(asked.specimen.source, options)
            except ClientError as error:
                scene.ledger.answered(who, asked, error)
            else:
                scene.ledger.answered(who, asked, answer)
