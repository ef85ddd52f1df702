"""Callers that go without a word: calls cancelled, connections closed in the middle of an image, processes killed.

Run as a program it is such a process: it streams to ADDRESS as fast as it can until somebody kills it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from random import Random

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc

from .scene import Menu, Scene

CHUNK_BYTES = 100_000
PLANE = pb.RawPlane(rows=256, columns=256, sample_type=pb.SAMPLE_TYPE_UINT8, data=bytes(range(256)) * 256)


async def cancelling(scene: Scene, number: int) -> None:
    """Single calls and streams, cancelled at any time."""
    rng = scene.rng(f"cancelled {number}")
    menu = Menu(scene, rng, hostile=0.3)
    while await scene.rest(rng.uniform(0, 1)):
        async with scene.channel(rng) as channel:
            stub = pb_grpc.CategorizationServiceStub(channel)
            files = [menu.file().specimen.source for _ in range(rng.randrange(1, 20))]
            requests = [pb.CategorizeRequest(image=pb.Image(encoded=file)) for file in files]
            calls = [stub.Categorize(request) for request in requests]
            if rng.random() < 0.5:
                calls = [stub.CategorizeStream(_stream(requests))]
            _vanish(scene, "cancelled", len(files))
            await asyncio.sleep(rng.expovariate(10))
            for call in calls:
                call.cancel()
            await asyncio.gather(*(call.code() for call in calls))


async def cutting(scene: Scene, number: int) -> None:
    """Connections closed within an upload, and before the answers to what was sent are read."""
    rng = scene.rng(f"cut {number}")
    menu = Menu(scene, rng)
    while await scene.rest(rng.uniform(0, 2)):
        channel = scene.channel(rng)
        call = pb_grpc.CategorizationServiceStub(channel).CategorizeStream()
        whole, large = [menu.file() for _ in range(rng.randrange(4))], menu.large().specimen
        announced = pb.Image(chunked=pb.ChunkedContent(size_bytes=large.size_bytes))
        messages = [pb.CategorizeRequest(image=pb.Image(encoded=asked.specimen.source)) for asked in whole]
        _vanish(scene, "cut", len(whole) + 1)
        try:
            for message in (*messages, pb.CategorizeRequest(image=announced)):
                await call.write(pb.CategorizeStreamRequest(item=message))
            for start in range(0, rng.randrange(large.size_bytes), CHUNK_BYTES):
                await call.write(pb.CategorizeStreamRequest(chunk=large.source[start : start + CHUNK_BYTES]))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # a server that is closing: it is gone all the same
            pass
        await channel.close(grace=None)


async def killed(scene: Scene, number: int) -> None:
    """Processes that are killed while they send."""
    rng = scene.rng(f"killed {number}")
    while await scene.rest(rng.uniform(4, 15)):
        address = rng.choice(scene.replicas).address
        command = [sys.executable, "-m", __spec__.name, address]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()  # it has begun, or ended because its server is down
        await asyncio.sleep(rng.uniform(0, 1))
        if process.returncode is None:
            process.kill()
            scene.ledger.happens("processes of callers killed")
        await process.wait()


def _vanish(scene: Scene, who: str, images: int) -> None:
    scene.ledger.sends(who, images)
    scene.ledger.vanishes(who, images)


async def _stream(requests: list[pb.CategorizeRequest]) -> AsyncIterator[pb.CategorizeStreamRequest]:
    for request in requests:
        yield pb.CategorizeStreamRequest(item=request)


async def _endless() -> AsyncIterator[pb.CategorizeStreamRequest]:
    for n in range(2**31):
        if n == 10:
            print("sending", flush=True)
        yield pb.CategorizeStreamRequest(item=pb.CategorizeRequest(image=pb.Image(raw=PLANE)))


async def _until_killed(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.CategorizationServiceStub(channel)
        streams = [stub.CategorizeStream(_endless()) for _ in range(Random().randrange(1, 5))]
        firsts = await asyncio.gather(*(stream.read() for stream in streams), return_exceptions=True)  # and no more
        if any(isinstance(first, grpc.aio.AioRpcError) for first in firsts):
            return  # its server is closing
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(_until_killed(sys.argv[1]))
