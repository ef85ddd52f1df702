"""The client with the real server: the same answers as the library, through restarts."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepmcat_client import Assignment, AsyncClient, Categorization, Options
from deepmcat_client.errors import ArtifactNotFound, ClientError, ImageTooLarge, InvalidRequest, UnsupportedImage
from deepmcat_client.local import LocalCategorizer, read_artifact
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.engine import Engine
from deepmcat_core.frame import ImageSource
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_server.app import Running, run_server
from deepmcat_server.config import Settings


class ThreadPool:
    """A decoding pool of threads: nothing to spawn, and trusted images only."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        return self._threads.submit(read_planes, source, options)

    def close(self) -> None:
        self._threads.shutdown()


Serving = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(name="serving")
def serving_fixture(artifact: Artifact, engine: Engine) -> Serving:
    """`async with serving(max_queue=4) as running`: the server, without processes."""

    def serving(**settings: Any) -> AbstractAsyncContextManager[Running]:
        quick = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "drain_s": 0.0, "grace_s": 5.0, "decode_workers": 1}
        chosen = Settings(**{**quick, **settings})
        return run_server(chosen, Categorizer(artifact, engine, chosen.limits), open_pool=ThreadPool)

    return serving


def image(number: int, side: int = 40) -> bytes:
    """A PNG, different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, size=(side, side), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


async def test_server_and_library_answer_the_same(serving: Serving, artifact: Artifact, engine: Engine) -> None:
    """Every field of every answer, candidates, frames and embeddings included; errors by reason and message."""
    images = [(n, image(n)) for n in range(20)] + [(20, b"no image"), (21, image(21, side=1200)), (22, b"")]
    options = Options(top_k=2, want_embedding=True)
    with LocalCategorizer(artifact.folder, open_artifact=lambda _: Categorizer(artifact, engine)) as local:
        expected = list(local.categorize_stream(images, options))

    async with serving() as running, AsyncClient(str(running.listen)) as client:
        answers = [pair async for pair in client.categorize_stream(images, options)]
        one = await client.categorize(image(3), options)
        large = await client.categorize(image(21, side=1200), options)

    assert isinstance(answers[20][1], UnsupportedImage)
    for (_, ours), (_, theirs) in zip(answers, expected, strict=True):
        assert_same(ours, theirs)
    assert_same(one, expected[3][1])
    assert_same(large, expected[21][1])


async def test_server_and_disk_describe_the_same(serving: Serving, artifact: Artifact) -> None:
    """GetArtifact and ListCategories give what the files say."""
    info, catalog = read_artifact(artifact.folder)

    async with serving() as running, AsyncClient(str(running.listen)) as client:
        served, categories = await client.get_artifact(), await client.list_categories()

    assert served.artifact == info.artifact
    assert [gate.precision for gate in served.artifact.precision_gates] == ["bfloat16"]
    assert categories == catalog
    assert served.serving is not None
    assert served.serving.limits.max_chunk_bytes == 2**20


async def test_refusals_are_typed(serving: Serving) -> None:
    """What the server refuses arrives as its class, and a refused chunked image does not disturb the next."""
    huge = bytes(3 * 2**20)
    async with serving(max_image_bytes=2 * 2**20) as running, AsyncClient(str(running.listen)) as client:
        with pytest.raises(ArtifactNotFound):
            await client.categorize(image(1), Options(artifact_id="b" * 64))
        with pytest.raises(InvalidRequest):
            await client.categorize(image(1), Options(frames=10_000))
        answers = [a async for _, a in client.categorize_stream([(1, image(1)), (2, huge), (3, image(3))])]

    assert [type(answer) for answer in answers] == [Categorization, ImageTooLarge, Categorization]


async def test_a_restart_in_the_middle_loses_and_doubles_nothing(serving: Serving) -> None:
    """The server drains and another starts at its address while images stream: one answer each, in order."""
    total, switch_at = 120, (30, 70)
    restarts = 0
    running = await (opened := serving()).__aenter__()
    address = str(running.listen)
    seen: list[int] = []
    async with AsyncClient(address, in_flight=16) as client:
        async for number, answer in client.categorize_stream((n, image(n)) for n in range(total)):
            assert isinstance(answer, Categorization), answer
            seen.append(number)
            if number in switch_at:
                await opened.__aexit__(None, None, None)
                await (opened := serving(listen=address)).__aenter__()
                restarts += 1
    await opened.__aexit__(None, None, None)

    assert (seen, restarts) == (list(range(total)), 2)


async def test_a_server_with_little_room_answers_everything(serving: Serving) -> None:
    """Flow control and bounded retries: a queue of two and a stream of many more images than that."""
    images = [(n, image(n)) for n in range(60)]
    async with serving(max_queue=2, max_stream_in_flight=2) as running, AsyncClient(str(running.listen)) as client:
        answers = [pair async for pair in client.categorize_stream(iterate(images))]

    assert [key for key, _ in answers] == list(range(60))
    assert not [answer for _, answer in answers if isinstance(answer, ClientError)]


def iterate(images: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """A generator, which the client runs beside its loop."""
    yield from images


def assert_same(ours: Categorization | ClientError, theirs: Categorization | ClientError) -> None:
    """Equal, but for the rounding of a matrix product in batches of other sizes."""
    if isinstance(theirs, ClientError):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        return
    assert isinstance(ours, Categorization)
    assert_close(ours.assignment, theirs.assignment)
    assert [frame.frame_number for frame in ours.frames] == [frame.frame_number for frame in theirs.frames]
    for our_frame, their_frame in zip(ours.frames, theirs.frames, strict=True):
        assert_close(our_frame.assignment, their_frame.assignment)
    assert ours.embedding is not None
    assert theirs.embedding is not None
    assert list(ours.embedding.floats()) == pytest.approx(list(theirs.embedding.floats()), abs=1e-5)
    rest = {"assignment": theirs.assignment, "frames": (), "embedding": None}
    assert dataclasses.replace(ours, **rest) == dataclasses.replace(theirs, **rest)


def assert_close(ours: Assignment, theirs: Assignment) -> None:
    """The same clusters and categories, and numbers that are close."""
    assert [c.cluster_id for c in ours.candidates] == [c.cluster_id for c in theirs.candidates]
    assert [c.category_id for c in ours.candidates] == [c.category_id for c in theirs.candidates]
    assert ours.cluster_id == theirs.cluster_id
    assert ours.distance == pytest.approx(theirs.distance, abs=1e-4)
    assert ours.p_value == pytest.approx(theirs.p_value, abs=0.01)
