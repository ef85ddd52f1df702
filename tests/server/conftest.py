"""A whole server over a real channel, with a small engine that a test can hold, fail and watch."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.engine import Engine
from deepmcat_core.frame import ImageSource
from deepmcat_core.logs import JsonFormatter
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_server.app import Running, run_server
from deepmcat_server.config import Settings

QUICK = {
    "listen": "127.0.0.1:0",
    "admin": "127.0.0.1:0",
    "decode_workers": 1,
    "drain_s": 0.0,
    "grace_s": 5.0,
    "catalog_poll_s": 0.05,
}

# `deepmcat serve`, which then says whether torch was imported.
PROGRAM = """
import sys
from deepmcat_client.cli import main
code = main(["serve", *sys.argv[1:]])
sys.exit(77 if "torch" in sys.modules else code)
"""


class HeldEngine:
    """An engine that a test can hold before each batch, let fail, and ask for the batches it saw."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.name, self.device, self.dim, self.precision = inner.name, inner.device, inner.dim, inner.precision
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.batches: list[int] = []
        self.warmed: list[int] = []

    def embed(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.batches.append(len(images))
        self.entered.set()
        assert self.free.wait(20)
        if self.failure is not None:
            raise self.failure
        return self._inner.embed(images)

    def warm(self, batches: Any) -> None:
        self.warmed += batches

    def close(self) -> None:
        self.free.set()


class ThreadPool:
    """A decoding pool of threads: nothing to spawn, and trusted images only."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        return self._threads.submit(read_planes, source, options)

    def close(self) -> None:
        self._threads.shutdown()


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that is SERVING and a channel to it."""

    running: Running
    channel: grpc.aio.Channel
    stub: Any
    engine: HeldEngine
    categorizer: Categorizer

    @property
    def scraped(self) -> dict[str, float]:
        """The samples of the registry by name and labels, as a scrape shows them."""
        samples = (sample for family in self.running.registry.collect() for sample in family.samples)
        return {
            s.name + "".join(f" {key}={value}" for key, value in sorted(s.labels.items())): s.value for s in samples
        }


Serving = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(name="held")
def held_fixture(engine: Engine) -> HeldEngine:
    return HeldEngine(engine)


@pytest.fixture(name="serving")
def serving_fixture(artifact: Artifact, held: HeldEngine) -> Serving:
    """`async with serving(max_queue=4) as served`: a server with these settings. engine: instead of the held one."""
    tiny = artifact

    @asynccontextmanager
    async def serving(
        pool: Callable[[int], Any] = ThreadPool,
        artifact: Artifact = tiny,
        engine: Engine = held,
        tracing: Any = None,
        **settings: Any,
    ) -> AsyncIterator[Served]:
        chosen = Settings(**(QUICK | settings))
        categorizer = Categorizer(artifact, engine, chosen.limits)
        async with (
            run_server(chosen, categorizer, open_pool=pool, tracing=tracing) as running,
            grpc.aio.insecure_channel(str(running.listen)) as channel,
        ):
            yield Served(
                running=running,
                channel=channel,
                stub=pb_grpc.CategorizationServiceStub(channel),
                engine=held,
                categorizer=categorizer,
            )

    return serving


@pytest.fixture(name="log")
def log_fixture() -> Iterator[io.StringIO]:
    """Everything that is logged, as the server's own formatter writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, ours = logging.getLogger(), logging.getLogger("deepmcat")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield stream
    ours.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture(name="program")
def program_fixture() -> str:
    """`python -c` of it, with arguments, is `deepmcat serve`."""
    return PROGRAM


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process that serves."""

    process: subprocess.Popen[bytes]
    listen: str
    admin: str
    log: Path

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(name="start")
def start_fixture(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start(artifact, "--set", "drain_s=0")`: a process that is SERVING on free ports."""
    processes = []

    def start(artifact: Path, *arguments: str) -> Server:
        ready, log = tmp_path / "ready.json", tmp_path / "log"
        ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file", str(ready)]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(artifact), *ports, "--set", "decode_workers=1", *arguments],
                stderr=stderr,
            )
        processes.append(process)
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        return Server(process=process, log=log, **json.loads(ready.read_text()))

    yield start
    for process in processes:
        process.kill()
        process.wait()


async def _answers(call: Any) -> list[Any]:
    """Every answer of a stream until its end, however it ends; `await call.code()` says how."""
    answers = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for response in call:
            answers.append(response)  # noqa: PERF401  # those before an error count
    return answers


@pytest.fixture(name="answers_of")
def answers_of_fixture() -> Callable[[Any], Any]:
    return _answers


@pytest.fixture(name="pngs")
def pngs_fixture(draft: Any) -> list[bytes]:
    """The artifact's four prototypes as PNG files: image i belongs to cluster i."""
    return [_png(image[0]) for image in draft.self_test.images]


@pytest.fixture(name="request_of")
def request_of_fixture() -> Callable[..., pb.CategorizeRequest]:
    """A request from bytes and options."""

    def request_of(content: bytes, item_id: str = "", **options: Any) -> pb.CategorizeRequest:
        return pb.CategorizeRequest(
            item_id=item_id, image=pb.Image(encoded=content), options=pb.CategorizeOptions(**options)
        )

    return request_of


@pytest.fixture(name="until")
def until_fixture() -> Callable[[Callable[[], bool]], Any]:
    """Wait until something is so; the test's own time limit ends it otherwise."""

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.005)

    return until


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
