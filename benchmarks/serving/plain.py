"""What a good user would write instead of a server like ours: gRPC's asyncio server, a queue, and batches from it.

    python -m benchmarks.serving.plain ADDRESS READY --batch 32 [--queue N] [--nothing] [--engine torch --artifact PATH]

It answers the same calls with embeddings alone: no decoding, no categories, no metrics. The next batch is what waits,
as ours is; the encoder runs on a thread of its own; whoever has gone is not run. `--queue` refuses what does not fit.
`--nothing` answers at once, with nothing: what gRPC costs by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop
from benchmarks.serving.peers import work
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from deepmcat_core.artifact import Artifact
from deepmcat_core.cpus import available_cpus
from deepmcat_core.engine import open_engine


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Calls put planes into the queue and wait; `consume` takes batches out of it."""

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], batch: int, longest: int, nothing: bool) -> None:
        """longest: the queue's length, 0 for any. nothing: answer so."""
        self._embed = embed
        self._batch = batch
        self._nothing = nothing
        self._queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = asyncio.Queue(longest)
        self._thread = ThreadPoolExecutor(1)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self._nothing:
            return oip.ModelInferResponse(model_name=request.model_name)
        shape = tuple(request.inputs[0].shape)
        planes = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((planes, answer))
        except asyncio.QueueFull:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        embeddings = await answer  # cancelled with the call, so that `consume` knows
        response = oip.ModelInferResponse(model_name=request.model_name, raw_output_contents=[embeddings.tobytes()])
        response.outputs.add(name="embedding", datatype="FP32", shape=embeddings.shape)
        return response

    async def consume(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waiting = [await self._queue.get()]
            while not self._queue.empty() and sum(len(planes) for planes, _ in waiting) < self._batch:
                waiting.append(self._queue.get_nowait())
                waiting = [item for item in waiting if not item[1].done()]
            if waiting := [item for item in waiting if not item[1].done()]:
                try:
                    embeddings = await loop.run_in_executor(self._thread, self._run, [item[0] for item in waiting])
                except Exception as error:  # noqa: BLE001  # handed to all who wait for it
                    for _, answer in waiting:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for (_, answer), rows in zip(waiting, embeddings, strict=True):
                    if not answer.done():
                        answer.set_result(rows)

    def _run(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        ends = np.cumsum([len(planes) for planes in parts])
        return np.split(self._embed(np.concatenate(parts)), ends[:-1])


def _embed(options: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """As peers/work.py has it, or an engine of ours: (B, S, S) → (B, D)."""
    if options.artifact is None:
        return work.from_environment()
    artifact = Artifact.load(options.artifact)
    engine = open_engine(artifact, device="cpu", engine=options.engine, threads=available_cpus())
    engine.warm([1, options.batch])
    return lambda planes: engine.embed(planes[:, None])


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    servicer = Servicer(_embed(options), options.batch, options.queue, options.nothing)
    server = grpc.aio.server()
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    server.add_insecure_port(options.address)
    consumer = asyncio.create_task(servicer.consume())
    await server.start()
    options.ready.touch()
    await stop.wait()
    await server.stop(grace=5)
    consumer.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("ready", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--queue", type=int, default=0)
    parser.add_argument("--nothing", action="store_true")
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--artifact", type=Path)
    uvloop.run(functools.partial(_serve, parser.parse_args())())


if __name__ == "__main__":
    main()
