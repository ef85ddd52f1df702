"""A stream as any program in any language could send it: its own messages, ids and pace.

Answers have to come in the order of the images, each with its id. What has none when a call ends because the server is
closing or busy is sent again on another.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client import wire
from deepmcat_client.errors import ClientError, TryAgain, Unavailable
from deepmcat_client.requests import Options
from deepmcat_client.status import from_rpc

from .oracle import Asked
from .scene import LARGE_BYTES, MESSAGE_S, Scene

TRIES = 40
TIMEOUT_S = 60.0

_NUMBERS = itertools.count()


async def _at_once() -> None:
    """No pause."""


def error_of(error: grpc.aio.AioRpcError) -> ClientError:
    """What a call ended with. A write that fails as the call ends replaces the server's status (grpc issue 36066)."""
    if error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata():
        return Unavailable("the call ended while it was written to")
    return from_rpc(error, "replica")


@dataclass(slots=True)
class Item:
    """An image of a stream, and how often it was sent."""

    asked: Asked
    tries: int = 0
    id: str = field(default_factory=lambda: f"item-{next(_NUMBERS)}")


@dataclass(frozen=True, kw_only=True)
class WireStream:
    """Sends images until each has its answer. before_chunk, before_read: the caller's pace."""

    scene: Scene
    who: str
    rng: random.Random
    chunk_bytes: int = wire.CHUNK_BYTES
    before_chunk: Callable[[], Awaitable[None]] = _at_once
    before_read: Callable[[], Awaitable[None]] = _at_once

    async def send(self, images: Sequence[Asked]) -> None:
        """All of them, over as many calls as it takes."""
        items = [Item(asked) for asked in images]
        self.scene.ledger.sends(self.who, len(items))
        while items:
            async with self.scene.channel(self.rng) as channel:
                items = await self._call(channel, items)
            if items:
                await asyncio.sleep(self.rng.uniform(0.1, 0.6))

    async def _call(self, channel: grpc.aio.Channel, items: list[Item]) -> list[Item]:
        """One call; those that have to be sent again."""
        left, again = deque(items), []
        call = pb_grpc.CategorizationServiceStub(channel).CategorizeStream()
        writer = asyncio.create_task(self._write(call, items))
        try:
            while True:
                await self.before_read()
                async with asyncio.timeout(MESSAGE_S):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    break
                again += self._read(message, left)
            if not left:
                return again
            self.scene.ledger.breaks("lost image", self.who, f"a call ended with OK and {len(left)} without answer")
            error = ClientError("no answer")
        except grpc.aio.AioRpcError as rpc_error:
            error = error_of(rpc_error)
        except TimeoutError:
            error = ClientError(f"no answer for {MESSAGE_S} s")
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return again + [item for item in left if self._again(item, error)]

    async def _write(self, call: Any, items: Sequence[Item]) -> None:
        for item in items:
            for message in self._messages(item):
                if message.WhichOneof("message") == "chunk":
                    await self.before_chunk()
                await call.write(message)
        await call.done_writing()

    def _messages(self, item: Item) -> list[pb.CategorizeStreamRequest]:
        asked, source = item.asked, item.asked.specimen.source
        options = wire.options_message(
            Options(frames=asked.frames, top_k=asked.top_k, want_embedding=asked.want_embedding), TIMEOUT_S
        )
        if not isinstance(source, bytes) or len(source) <= min(LARGE_BYTES, self.chunk_bytes):
            return [pb.CategorizeStreamRequest(item=wire.item_request(item.id, source, options))]
        announced = pb.Image(chunked=pb.ChunkedContent(size_bytes=len(source)))
        request = pb.CategorizeRequest(item_id=item.id, image=announced, options=options)
        starts = range(0, len(source), self.chunk_bytes)
        chunks = [pb.CategorizeStreamRequest(chunk=source[start : start + self.chunk_bytes]) for start in starts]
        return [pb.CategorizeStreamRequest(item=request), *chunks]

    def _read(self, message: pb.CategorizeStreamResponse, left: deque[Item]) -> list[Item]:
        """Judge an answer; the item where it has to be sent again."""
        if not left or message.item_id != left[0].id:
            self.scene.ledger.breaks("order", self.who, "an answer with another item_id than that which was next")
            return []
        item, answer = left.popleft(), wire.stream_answer(message)
        if isinstance(answer, ClientError) and self._again(item, answer, judge=False):
            return [item]
        self.scene.ledger.answered(self.who, item.asked, answer)
        return []

    def _again(self, item: Item, error: ClientError, *, judge: bool = True) -> bool:
        """Whether an item may be sent again; where not, and it is to be judged, that is its answer."""
        item.tries += 1
        if isinstance(error, TryAgain) and item.tries < TRIES:
            self.scene.ledger.retries(error)
            return True
        if judge:
            self.scene.ledger.answered(self.who, item.asked, error)
        return False
