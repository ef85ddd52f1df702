"""Calls to a server, from a process of its own: at a rate, whatever becomes of them, or as fast as answers come.

    python -m benchmarks.serving.load SPEC RESULT          RESULT.begun appears when the load begins

Requests are serialised before anything is timed and answers are not parsed, so that the load costs little and the same
for all; only `tritonclient` is the client of that name as people use it. Arrivals of a rate are a Poisson process with
a fixed seed. Nothing is tried again.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

MODEL = "deepmcat"  # ours has that name, so all have
WAYS = {
    "infer": "/inference.GRPCInferenceService/ModelInfer",
    "categorize": "/deepmcat.v1.CategorizationService/Categorize",
}
IMAGES = 16  # different ones
LATE_S = 20.0  # what has not ended so long after the load has UNANSWERED for its code

Send = Callable[[int, float | None], Awaitable[str]]


@dataclass(frozen=True, kw_only=True)
class Load:
    """rate: calls a second, by a Poisson process; None: so many callers, each waiting for its answer.

    way: infer, categorize or tritonclient. images: of one call. deadline_s: of a call.
    """

    address: str
    way: str
    seconds: float
    rate: float | None = None
    callers: int = 1
    images: int = 1
    side: int = 128
    deadline_s: float | None = None
    channels: int = 4
    seed: int = 0


def planes(images: int, side: int, seed: int) -> np.ndarray:
    """(n, side, side) uint8: noise, smoothed a little by its coarseness."""
    coarse = np.random.default_rng(seed).integers(0, 256, (images, side // 4, side // 4), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 4, 4), np.uint8))


def request(way: str, content: np.ndarray) -> bytes:
    """A serialised request for planes (n, S, S); of `categorize` for the only one."""
    if way == "categorize":
        from deepmcat.v1 import categorization_pb2 as pb

        raw = pb.RawPlane(
            rows=content.shape[1], columns=content.shape[2], sample_type=pb.SAMPLE_TYPE_UINT8, data=content[0].tobytes()
        )
        return pb.CategorizeRequest(image=pb.Image(raw=raw)).SerializeToString()
    from tritonclient.grpc import service_pb2 as oip

    message = oip.ModelInferRequest(model_name=MODEL, raw_input_contents=[content.tobytes()])
    message.inputs.add(name="plane", datatype="UINT8", shape=content.shape)
    message.outputs.add(name="embedding")
    return message.SerializeToString()


async def run(load: Load, begun: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The calls, and how late the latest was sent. begun: called when connections are made."""
    contents = [planes(load.images, load.side, load.seed + i) for i in range(IMAGES)]
    async with _sender(load, contents) as send:
        for i in range(load.channels):  # connections are made before anything is timed
            await send(i, None)
        begun()
        before = time.process_time()
        calls, latest_s = await (_open(load, send) if load.rate else _closed(load, send))
    return {"calls": calls, "latest_s": latest_s, "cpu_s": time.process_time() - before}


async def _open(load: Load, send: Send) -> tuple[list[list[Any]], float]:
    """Calls when they are due, whether or not those before have ended."""
    rng, begin = random.Random(load.seed), time.monotonic()
    calls: list[list[Any]] = []
    open_calls: dict[asyncio.Task[None], float] = {}  # and when they were due
    n, due, latest_s = 0, begin, 0.0
    assert load.rate is not None
    while (due := due + rng.expovariate(load.rate)) < begin + load.seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        latest_s = max(latest_s, time.monotonic() - due)
        task = asyncio.create_task(_call(load, send, n, due, calls))
        n += 1
        open_calls[task] = due
        task.add_done_callback(open_calls.pop)
    if open_calls:
        await asyncio.wait(open_calls, timeout=LATE_S)
    now = time.monotonic()
    return calls + [[due, now - due, "UNANSWERED"] for due in open_calls.values()], latest_s


async def _closed(load: Load, send: Send) -> tuple[list[list[Any]], float]:
    """So many callers, each with one call at a time."""
    until, calls = time.monotonic() + load.seconds, list[list[Any]]()

    async def caller(first: int) -> None:
        n = first
        while (now := time.monotonic()) < until:
            await _call(load, send, n, now, calls)
            n += load.callers

    await asyncio.gather(*(caller(i) for i in range(load.callers)))
    return calls, 0.0


async def _call(load: Load, send: Send, n: int, due: float, calls: list[list[Any]]) -> None:
    timeout_s = None if load.deadline_s is None else max(0.001, due + load.deadline_s - time.monotonic())
    code = await send(n, timeout_s)
    calls.append([due, time.monotonic() - due, code])


class _sender:  # noqa: N801  # an `async with` that gives a function
    """Sends the n-th request, and says with which code it ended."""

    def __init__(self, load: Load, contents: Sequence[np.ndarray]) -> None:
        self._load, self._contents = load, contents
        self._open: list[Any] = []

    async def __aenter__(self) -> Send:
        load = self._load
        if load.way == "tritonclient":
            return self._tritonclient()
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._open = [grpc.aio.insecure_channel(load.address, options=options) for _ in range(load.channels)]
        calls = [channel.unary_unary(WAYS[load.way]) for channel in self._open]
        requests = [request(load.way, content) for content in self._contents]

        async def send(n: int, timeout_s: float | None) -> str:
            try:
                await calls[n % len(calls)](requests[n % IMAGES], timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        return send

    def _tritonclient(self) -> Send:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.grpc.aio import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        clients = self._open = [InferenceServerClient(self._load.address) for _ in range(self._load.channels)]

        async def send(n: int, timeout_s: float | None) -> str:
            content = self._contents[n % IMAGES]
            tensor = InferInput("plane", list(content.shape), "UINT8").set_data_from_numpy(content)
            try:
                result = await clients[n % len(clients)].infer(
                    MODEL, [tensor], outputs=[InferRequestedOutput("embedding")], client_timeout=timeout_s
                )
            except InferenceServerException as error:
                return str(error.status()).removeprefix("StatusCode.")
            if len(result.as_numpy("embedding")) != len(content):
                raise SystemExit("an answer has another number of embeddings than images were sent")
            return "OK"

        return send

    async def __aexit__(self, *_: object) -> None:
        for each in self._open:
            await each.close()


def write(load: Load, file: Path) -> None:
    file.write_text(json.dumps(asdict(load)))


def main() -> None:
    import uvloop

    spec, result = map(Path, sys.argv[1:])
    found = uvloop.run(run(Load(**json.loads(spec.read_text())), Path(f"{result}.begun").touch))
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.rename(result)


if __name__ == "__main__":
    main()
