"""Artifacts that change while a server answers: nothing fails, nothing mixes, and there is a way back."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft, SelfTest
from deepmcat_core.planes import read_planes
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_server.app import Running, run_server
from deepmcat_server.config import Settings
from deepmcat_server.errors import ArtifactNotFound, ArtifactRefused
from deepmcat_server.opening import open_newest

SETTINGS = {
    "listen": "127.0.0.1:0",
    "admin": "127.0.0.1:0",
    "decode_workers": 1,
    "drain_s": 0.0,
    "grace_s": 5.0,
    "artifact_poll_s": 0.02,
}


class Projection:
    """The engine of the tests' artifacts, which a test can hold. Every one that was opened is in `opened`."""

    name, device, precision = "random-projection", "cpu", "float32"
    opened: ClassVar[weakref.WeakSet[Projection]] = weakref.WeakSet()

    def __init__(self, artifact: Artifact) -> None:
        self._matrix = artifact.encoder_weights()["matrix"]
        self.dim = self._matrix.shape[1]
        self.free, self.entered, self.closed = threading.Event(), threading.Event(), False
        self.free.set()
        artifact.self_test.check(self.embed(artifact.self_test.images))
        self.entered.clear()
        Projection.opened.add(self)

    def embed(self, images: Any) -> Any:
        self.entered.set()
        assert self.free.wait(20)
        assert images.shape[-1] ** 2 == len(self._matrix), "an image of another artifact's size"
        return embedded(images, self._matrix)

    def warm(self, batches: Any) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        self.closed = True


class Threads:
    """A decoding pool of threads, which a test can hold."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self.free = threading.Event()
        self.free.set()

    def submit(self, source: Any, options: Any) -> Future[Any]:
        return self._threads.submit(self._read, source, options)

    def _read(self, source: Any, options: Any) -> Any:
        assert self.free.wait(20)
        return read_planes(source, options)

    def close(self) -> None:
        self._threads.shutdown()


def embedded(images: Any, matrix: Any) -> Any:
    embeddings = (images.reshape(len(images), -1).astype(np.float32) / 255 - 0.5) @ matrix
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    running: Running
    channel: grpc.aio.Channel
    stub: Any

    @property
    def in_force(self) -> str:
        return self.running.lines.find().artifact_id

    def sample(self, name: str, **labels: str) -> float | None:
        return self.running.registry.get_sample_value(name, labels)


Serving = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(name="serving")
def serving_fixture() -> Serving:
    """`async with serving(path)`: a server of what lies there, and of what will."""
    Projection.opened.clear()

    @asynccontextmanager
    async def serving(path: Path, pool: Any = Threads, **settings: Any) -> AsyncIterator[Served]:
        chosen = Settings(**(SETTINGS | settings))
        opened = open_newest(path, Projection, chosen.limits)
        async with (
            run_server(chosen, opened.categorizer, first=opened, open_pool=pool, open_engine=Projection) as running,
            grpc.aio.insecure_channel(str(running.listen)) as channel,
        ):
            del opened
            yield Served(running=running, channel=channel, stub=pb_grpc.CategorizationServiceStub(channel))

    return serving


@dataclasses.dataclass(frozen=True)
class Made:
    """An artifact on disk. cluster_of[i]: the cluster of image i, which differs between those that a test makes."""

    path: Path
    id: str
    cluster_of: list[int]


@pytest.fixture(name="make")
def make_fixture(draft: Draft, tmp_path: Path) -> Callable[..., Made]:
    """`make("b", turn=1, size=16)`: an artifact with its clusters turned by so many, of another input size."""
    (tmp_path / "made").mkdir()

    def make(name: str, *, turn: int = 0, size: int = 32) -> Made:
        step = size // 4
        images = np.kron(draft.self_test.images[:, :, ::8, ::8], np.ones((1, 1, step, step), np.uint8))
        matrix = np.random.default_rng(size).normal(size=(size * size, draft.manifest.dim)).astype(np.float32)
        embeddings = embedded(images, matrix)
        cluster_of = [(i + turn) % 4 for i in range(4)]
        changed = dataclasses.replace(
            draft,
            manifest=dataclasses.replace(
                draft.manifest,
                preprocessing=Preprocessing(size=size),
                training={"recipe": "test", "turn": turn},
            ),
            encoder={"matrix": matrix},
            centroids=embeddings[np.argsort(cluster_of)],
            self_test=SelfTest(images=images, embeddings=embeddings),
        )
        path = tmp_path / "made" / name
        return Made(path=path, id=artifacts.write(path, changed), cluster_of=cluster_of)

    return make


def put(made: Made, path: Path) -> None:
    """Replace what lies at `path` by renames, as deployments do; what was there is set aside."""
    arriving = path.with_name(f".{path.name}-{made.path.name}")
    shutil.copytree(made.path, arriving)
    if path.exists():
        path.rename(path.with_name(f".{path.name}-was-before-{made.path.name}"))
    arriving.rename(path)


async def test_every_answer_is_its_artifact_s_while_another_comes_into_force(
    serving, make, pngs, request_of, until, answers_of, tmp_path: Path
):
    """Calls and a stream go on through a change of artifact and input size: none fails, order holds, none is mixed."""
    old, new = make("a"), make("b", turn=1, size=16)
    cluster_of = {old.id: old.cluster_of, new.id: new.cluster_of}
    path, done = tmp_path / "served", asyncio.Event()
    put(old, path)
    wrong, seen, statuses = [], [], set()

    def check(image: int, answer: pb.Categorization) -> None:
        seen.append(answer.artifact_id)
        if answer.assignment.cluster_id != cluster_of[answer.artifact_id][image]:
            wrong.append((image, answer))

    async with serving(path) as served:
        health = health_pb2_grpc.HealthStub(served.channel)

        async def call(image: int) -> None:
            while not done.is_set():
                check(image, (await served.stub.Categorize(request_of(pngs[image]))).categorization)
                statuses.add((await health.Check(health_pb2.HealthCheckRequest())).status)

        async def requests() -> AsyncIterator[pb.CategorizeStreamRequest]:
            number = 0
            while not done.is_set():
                yield pb.CategorizeStreamRequest(item=request_of(pngs[number % 4], str(number)))
                number += 1
                await asyncio.sleep(0.001)

        stream = served.stub.CategorizeStream(requests())
        reading = asyncio.create_task(answers_of(stream))
        calls = [asyncio.create_task(call(image)) for image in range(4)]
        await until(lambda: len(seen) > 20)
        put(new, path)
        await until(lambda: seen.count(new.id) > 20)
        done.set()
        await asyncio.gather(*calls)
        answers = await reading
        code = await stream.code()
        metrics = {made.id: served.sample("deepmcat_artifact_info", artifact_id=made.id) for made in (old, new)}
        generation = served.sample("deepmcat_artifact_generation", artifact_name="default")

    for number, answer in enumerate(answers):
        check(number % 4, answer.categorization)
    assert code is grpc.StatusCode.OK
    assert [answer.item_id for answer in answers] == [str(number) for number in range(len(answers))]
    assert wrong == []
    assert set(seen) == {old.id, new.id}
    assert statuses == {health_pb2.HealthCheckResponse.SERVING}
    assert (metrics, generation) == ({old.id: 0, new.id: 1}, 2)


async def test_a_call_upon_a_queue_is_let_in_right_after_a_change(
    serving, make, pngs, request_of, until, answers_of, tmp_path: Path
):
    """More than a batch waits for decoding when the new artifact comes into force, on which no batch has run yet."""
    old, new = make("a"), make("b", turn=1, size=16)
    path, pool = tmp_path / "served", Threads(1)
    put(old, path)

    async def requests() -> AsyncIterator[pb.CategorizeStreamRequest]:
        for number in range(40):
            yield pb.CategorizeStreamRequest(item=request_of(pngs[0], str(number)))

    async with serving(path, pool=lambda workers: pool) as served:
        await served.stub.Categorize(request_of(pngs[0]))
        pool.free.clear()
        reading = asyncio.create_task(answers_of(served.stub.CategorizeStream(requests())))
        await until(lambda: (served.sample("deepmcat_inflight_images") or 0) >= 40)
        put(new, path)
        await until(lambda: served.in_force == new.id)
        call = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await asyncio.wait([call], timeout=0.2)
        pool.free.set()
        answer, streamed = (await call).categorization, await reading

    assert (answer.artifact_id, answer.assignment.cluster_id) == (new.id, 1)
    assert [each.categorization.assignment.cluster_id for each in streamed] == [0] * 40


async def test_an_image_is_finished_on_the_artifact_it_began_on(serving, make, pngs, request_of, until, tmp_path: Path):
    """What is with the old encoder when the new one comes into force is answered by the old, unloaded or not."""
    old, new = make("a"), make("b", turn=1, size=16)
    path = tmp_path / "served"
    put(old, path)
    async with serving(path, keep_artifacts=0) as served:
        engine = served.running.lines.find().categorizer.engine
        engine.free.clear()
        first = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(engine.entered.is_set)
        put(new, path)
        await until(lambda: served.in_force == new.id)
        second = await served.stub.Categorize(request_of(pngs[0]))
        alive = not engine.closed
        engine.free.set()
        answers = [(await first).categorization, second.categorization]
        await until(lambda: engine.closed)

    assert alive
    assert [(a.artifact_id, a.assignment.cluster_id) for a in answers] == [(old.id, 0), (new.id, 1)]


def spoil(path: Path) -> None:
    """Change a byte of the centroids."""
    file = path / "centroids.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


async def test_a_damaged_artifact_changes_nothing(serving, make, pngs, request_of, until, tmp_path: Path):
    """One that fails its digests is refused and counted once; the old one answers; mended, it comes into force."""
    old, new = make("a"), make("b", turn=1)
    whole = (new.path / "centroids.safetensors").read_bytes()
    spoil(new.path)
    path = tmp_path / "served"
    put(old, path)
    async with serving(path) as served:
        put(new, path)
        await until(lambda: served.sample("deepmcat_artifact_loads_total", result="damaged") == 1)
        await asyncio.sleep(0.2)
        still = (await served.stub.Categorize(request_of(pngs[0]))).categorization
        refused = served.sample("deepmcat_artifact_loads_total", result="damaged")
        (path / "centroids.safetensors").write_bytes(whole)
        await until(lambda: served.in_force == new.id)

    assert (still.artifact_id, still.assignment.cluster_id, refused) == (old.id, 0, 1)


async def test_an_encoder_that_computes_something_else_is_refused(serving, make, until, tmp_path: Path):
    """Digests in order and a self-test that fails: refused, its engine not kept."""
    old, new = make("a"), make("b", turn=1)
    path = tmp_path / "served"
    put(old, path)

    async with serving(path) as served:
        good, Projection.embed = Projection.embed, lambda self, images: -good(self, images)
        try:
            put(new, path)
            await until(lambda: served.sample("deepmcat_artifact_loads_total", result="self_test") == 1)
        finally:
            Projection.embed = good
        assert served.in_force == old.id


async def test_a_path_that_goes_away_and_one_that_changes_twice(serving, make, until, pngs, request_of, tmp_path: Path):
    """The server answers with what it has where its path is gone, and follows the last of two quick changes."""
    made = [make(name, turn=turn) for turn, name in enumerate("abc")]
    path = tmp_path / "served"
    put(made[0], path)
    async with serving(path) as served:
        path.rename(tmp_path / ".gone")
        await asyncio.sleep(0.2)
        without = (await served.stub.Categorize(request_of(pngs[0]))).categorization
        put(made[1], path)
        put(made[2], path)
        await until(lambda: served.in_force == made[2].id)
        await asyncio.sleep(0.1)
        last = (await served.stub.Categorize(request_of(pngs[0]))).categorization

    assert (without.artifact_id, last.artifact_id) == (made[0].id, made[2].id)


async def test_the_way_back(serving, make, pngs, request_of, until, tmp_path: Path):
    """What was in force before can be pinned, and is in force again without loading: asked for, or by its path."""
    old, new = make("a"), make("b", turn=1)
    link = tmp_path / "served"
    link.symlink_to(old.path)
    async with serving(link) as served:
        turn_to(link, new)
        await until(lambda: served.in_force == new.id)
        loads = served.sample("deepmcat_artifact_loads_total", result="ok")
        pinned = (await served.stub.Categorize(request_of(pngs[0], artifact_id=old.id))).categorization
        listed = await served.stub.ListCategories(pb.ListCategoriesRequest(artifact_id=old.id))
        described = await served.stub.GetArtifact(pb.GetArtifactRequest(artifact_id="default"))
        await served.running.rollout.roll_back("default")
        asked = served.in_force
        await asyncio.sleep(0.1)
        stands = served.in_force
        await served.running.rollout.roll_back("default")
        turn_to(link, old)
        await until(lambda: served.in_force == old.id)
        engines = len(Projection.opened)
        with pytest.raises(ArtifactRefused, match="in force"):
            await served.running.rollout.unload(old.id)
        await served.running.rollout.unload(new.id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Categorize(request_of(pngs[0], artifact_id=new.id))
        with pytest.raises(ArtifactRefused, match="kept"):
            await served.running.rollout.roll_back("default")
        with pytest.raises(ArtifactNotFound):
            await served.running.rollout.activate("default", "../made/b")

    assert (pinned.artifact_id, pinned.assignment.cluster_id) == (old.id, 0)
    assert (listed.artifact_id, described.artifact.artifact_id) == (old.id, new.id)
    assert (asked, stands, loads) == (old.id, old.id, 1)
    assert engines == 2
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def turn_to(link: Path, made: Made) -> None:
    """Point a link elsewhere, by a rename."""
    other = link.with_name(".link")
    other.symlink_to(made.path)
    other.rename(link)


async def test_what_is_unloaded_is_freed(serving, make, until, tmp_path: Path):
    """Beyond those kept, nothing holds an artifact that was in force: neither its engine nor its arrays."""
    made = [make(name, turn=turn) for turn, name in enumerate("abc")]
    path = tmp_path / "served"
    put(made[0], path)
    async with serving(path, keep_artifacts=1) as served:
        gone = [weakref.ref(thing) for thing in of(served)]
        for each in made[1:]:
            put(each, path)
            await until(lambda each=each: served.in_force == each.id)
        await until(lambda: gc.collect() >= 0 and all(ref() is None for ref in gone))
        loaded = served.sample("deepmcat_artifacts_loaded")

    assert loaded == 2


def of(served: Served) -> list[Any]:
    categorizer = served.running.lines.find().categorizer
    return [categorizer, categorizer.engine, categorizer.artifact.centroids]


async def test_artifacts_by_name(serving, make, pngs, request_of, until, tmp_path: Path):
    """Each name has its own path and answers whoever pins it; the default answers the others."""
    general, ct, newer = make("a"), make("b", turn=1, size=16), make("c", turn=2)
    shutil.copytree(general.path, tmp_path / "general")
    put(ct, tmp_path / "ct")
    async with serving(tmp_path / "general", artifacts={"ct": tmp_path / "ct"}) as served:
        default, by_name, by_id = [
            (await served.stub.Categorize(request_of(pngs[0], artifact_id=pin))).categorization
            for pin in ("", "ct", ct.id)
        ]
        put(newer, tmp_path / "ct")
        await until(lambda: served.running.lines.find("ct").artifact_id == newer.id)
        after = (await served.stub.Categorize(request_of(pngs[0], artifact_id="ct"))).categorization
        unmoved = served.in_force

    answers = [(a.artifact_id, a.assignment.cluster_id) for a in (default, by_name, by_id, after)]
    assert answers == [(general.id, 0), (ct.id, 1), (ct.id, 1), (newer.id, 2)]
    assert unmoved == general.id


async def test_memory_has_a_bound(serving, make, until, tmp_path: Path):
    """What is kept makes room for the next artifact; where that is not enough, the next is refused."""
    made = [make(name, turn=turn, size=72) for turn, name in enumerate("abc")]  # about 0.4 MiB each
    large = make("d", size=128)  # 1 MiB, and more with the others
    path = tmp_path / "served"
    put(made[0], path)
    async with serving(path, max_artifact_bytes=2**20, keep_artifacts=4) as served:
        for each in made[1:]:
            put(each, path)
            await until(lambda each=each: served.in_force == each.id)
        loaded = {line.artifact_id for line in served.running.lines}
        put(large, path)
        await until(lambda: served.sample("deepmcat_artifact_loads_total", result="no_room") == 1)
        still = served.in_force

    assert loaded == {made[1].id, made[2].id}
    assert still == made[2].id


async def test_the_newest_version_that_can_be_used_is_begun_with(serving, make, until, tmp_path: Path):
    """Of a folder of versions the last in order is in force; a damaged one is passed over at the start too."""
    folder = tmp_path / "versions"
    folder.mkdir()
    made = {name: make(name, turn=turn) for turn, name in enumerate(["v9", "v10", "v11", "v12"])}
    for name in ("v9", "v10", "v11"):
        shutil.copytree(made[name].path, folder / name)
    spoil(folder / "v11")
    async with serving(folder) as served:
        begun = served.in_force
        Artifact.load(made["v12"].path).pack(folder / "v12.tar")
        await until(lambda: served.in_force == made["v12"].id)

    assert begun == made["v10"].id
