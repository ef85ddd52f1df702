"""Callers that break the protocol: each has its typed answer, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from random import Random
from typing import Any

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client.errors import ClientError, TryAgain

from .replica import CHUNK_TIMEOUT_S
from .scene import Scene
from .wire_stream import error_of

WHO = "offences"
SERVICE = "/deepmcat.v1.CategorizationService"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
TLS_HELLO = bytes.fromhex("160301020001000200")
MESSAGE_BYTES = 16 * 2**20  # what the servers take

Offence = tuple[str, list[bytes], str]
"""The method, its messages, and the reason that it ends with."""


def _item(image: pb.Image, item_id: str = "", **options: Any) -> pb.CategorizeRequest:
    return pb.CategorizeRequest(item_id=item_id, image=image, options=pb.CategorizeOptions(**options))


def _stream(*messages: pb.CategorizeRequest | bytes) -> list[bytes]:
    return [
        pb.CategorizeStreamRequest(**({"chunk": m} if isinstance(m, bytes) else {"item": m})).SerializeToString()
        for m in messages
    ]


PNG = pb.Image(encoded=b"\x89PNG")
CHUNKED = _item(pb.Image(chunked=pb.ChunkedContent(size_bytes=1000)))

OFFENCES: dict[str, Offence] = {
    "no message": ("Categorize", [b"\x0a\xff\xff\xff"], "INVALID_REQUEST"),
    "no message in a stream": ("CategorizeStream", [b"\x0a\xff\xff\xff"], "INVALID_REQUEST"),
    "an empty request": ("Categorize", [b""], "INVALID_REQUEST"),
    "a long item_id": ("Categorize", [_item(PNG, "x" * 65).SerializeToString()], "INVALID_REQUEST"),
    "too many frames": ("Categorize", [_item(PNG, frames=10**6).SerializeToString()], "INVALID_REQUEST"),
    "an unknown artifact": ("Categorize", [_item(PNG, artifact_id="f" * 64).SerializeToString()], "ARTIFACT_NOT_FOUND"),
    "chunks in a call": ("Categorize", [CHUNKED.SerializeToString()], "INVALID_REQUEST"),
    "a chunk of nothing": ("CategorizeStream", _stream(b"chunk"), "INVALID_REQUEST"),
    "a chunk too many": ("CategorizeStream", _stream(CHUNKED, bytes(1001)), "INVALID_REQUEST"),
    "an image within another": ("CategorizeStream", _stream(CHUNKED, bytes(10), CHUNKED), "INVALID_REQUEST"),
    "a stream that ends early": ("CategorizeStream", _stream(CHUNKED, bytes(999)), "INVALID_REQUEST"),
    "a message too long": ("Categorize", [bytes(MESSAGE_BYTES + 1)], "INVALID_REQUEST"),  # gRPC's own refusal
    "no such method": ("Nothing", [b""], "INVALID_REQUEST"),  # gRPC's own UNIMPLEMENTED
}


async def offend(scene: Scene, number: int) -> None:
    """Offences in turn."""
    rng = scene.rng(f"{WHO} {number}")
    while await scene.rest(rng.uniform(0, 1)):
        name = rng.choice(list(OFFENCES))
        method, messages, reason = OFFENCES[name]
        await _expect(scene, rng, name, reason, partial(_ending, method, messages))


async def stall(scene: Scene, number: int) -> None:
    """Uploads that stop: the call ends when the server has waited long enough for the next chunk."""
    rng = scene.rng(f"stalls {number}")
    while await scene.rest(rng.uniform(0, 10)):
        messages = _stream(CHUNKED, bytes(rng.randrange(1, 999)))
        call = partial(_ending, "CategorizeStream", messages, pause_s=10 * CHUNK_TIMEOUT_S)
        await _expect(scene, rng, "an upload that stalls", "INVALID_REQUEST", call)


async def babble(scene: Scene, number: int) -> None:
    """Connections that do not speak gRPC, or stop within a frame."""
    rng = scene.rng(f"babble {number}")
    while await scene.rest(rng.uniform(0, 2)):
        host, _, port = rng.choice(scene.replicas).address.rpartition(":")
        frame = rng.randrange(2**14).to_bytes(3, "big") + rng.randbytes(rng.randrange(64))
        content = rng.choice([PREFACE + frame, PREFACE, TLS_HELLO, b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(300), b""])
        scene.ledger.happens("connections that babble")
        with suppress(OSError, TimeoutError):  # it is down, hangs up, or waits for more
            reader, writer = await asyncio.open_connection(host, int(port))
            with closing(writer):
                writer.write(content)
                await asyncio.wait_for(reader.read(4096), rng.uniform(0, 3))


async def _expect(
    scene: Scene, rng: Random, name: str, reason: str, call: Callable[[grpc.aio.Channel], Awaitable[ClientError | None]]
) -> None:
    scene.ledger.sends(WHO)
    for _ in range(30):
        async with scene.channel(rng) as channel:
            error = await call(channel)
        if not isinstance(error, TryAgain):
            break
        scene.ledger.retries(error)
        await asyncio.sleep(rng.uniform(0.1, 0.6))
    found = error.reason if error else "ok"
    scene.ledger.outcomes[WHO][found] += 1
    if found != reason:
        scene.ledger.breaks("wrong answer", WHO, f"{name}: {found} ({error}) instead of {reason}")


async def _ending(
    method: str, messages: list[bytes], channel: grpc.aio.Channel, *, pause_s: float = 0
) -> ClientError | None:
    """The error that a call ends with. pause_s: how long it stays open after the last message."""

    async def requests() -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        await asyncio.sleep(pause_s)

    try:
        async for _ in channel.stream_stream(f"{SERVICE}/{method}")(requests(), timeout=120):
            continue
    except grpc.aio.AioRpcError as error:
        return error_of(error)
    return None
