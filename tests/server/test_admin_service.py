"""deepmcat.v1.AdminService on a whole server: what it does, who may, and what is audited."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from deepmcat.v1 import admin_pb2 as pb
from deepmcat.v1 import admin_pb2_grpc as pb_grpc
from deepmcat_client.cli import main
from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft
from deepmcat_core.planes import read_planes
from deepmcat_server.app import run_server
from deepmcat_server.config import Settings
from deepmcat_server.opening import open_newest

ADMIN = ("categorize", "read", "admin")


class Threads:
    """A decoding pool of threads."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, source: Any, options: Any) -> Future[Any]:
        return self._threads.submit(read_planes, source, options)

    def close(self) -> None:
        self._threads.shutdown()


Serving = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path, draft: Draft, changed: Callable[..., Draft]) -> Path:
    """Versions v1 and v2, which are artifacts of their own, and a v0 that is damaged."""
    for number in (1, 2):
        artifacts.write(tmp_path / "versions" / f"v{number}", changed(created_at=f"2026-01-0{number}T00:00:00Z"))
    shutil.copytree(tmp_path / "versions" / "v1", tmp_path / "versions" / "v0")
    (tmp_path / "versions" / "v0" / "tree.json").write_text("{}")
    manifest = tmp_path / "versions" / "v0" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("2026-01-01", "2025-01-01"))
    return tmp_path / "versions"


@pytest.fixture(name="audited")
def audited_fixture(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The lines of the audit log, without their time and level."""

    def audited() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in line.keys() - {"time", "level", "event"}} for line in lines]

    return audited


@pytest.fixture(name="serving")
def serving_fixture(tmp_path: Path, folder: Path, engine: Any) -> Serving:
    """`async with serving() as stub`: an AdminService over the folder of versions."""

    @asynccontextmanager
    async def serving(
        open_engine: Callable[[Artifact], Any] = lambda artifact: engine, **settings: Any
    ) -> AsyncIterator[Any]:
        chosen = Settings(
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            decode_workers=1,
            drain_s=0,
            artifact_poll_s=0,
            audit_file=tmp_path / "audit.jsonl",
            **({"admin_service": True, "anonymous_scopes": ADMIN} | settings),
        )
        opened = open_newest(folder, lambda artifact: engine, chosen.limits)
        async with (
            run_server(
                chosen,
                opened.categorizer,
                first=opened,
                open_pool=Threads,
                open_engine=open_engine,
            ) as running,
            grpc.aio.insecure_channel(str(running.listen)) as channel,
        ):
            stub = pb_grpc.AdminServiceStub(channel)
            stub.address = str(running.listen)
            yield stub

    return serving


def ids(folder: Path) -> dict[str, str]:
    return {path.name: artifacts.identify(path) for path in folder.iterdir()}


async def refusal(call: Any) -> tuple[str, str]:
    """The code and reason that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info = ErrorInfo()
    status.details[0].Unpack(info)
    return caught.value.code().name, info.reason


async def test_the_round_of_a_version(serving, folder: Path, audited):
    """List, load, activate, roll back, unload: each says what is so then, and each but listing is audited."""
    v = ids(folder)
    async with serving() as stub:

        async def listed() -> list[tuple[str, str, int]]:
            answer = await stub.ListArtifacts(pb.ListArtifactsRequest())
            return [(each.version, each.artifact_id, each.state) for each in answer.artifacts]

        at_first = await listed()
        loaded = await stub.LoadArtifact(pb.LoadArtifactRequest(version="v1"))
        beside = await listed()
        activated = await stub.ActivateArtifact(pb.ActivateArtifactRequest(artifact_id=v["v1"]))
        back = await stub.RollbackArtifact(pb.RollbackArtifactRequest(name="default"))
        await stub.UnloadArtifact(pb.UnloadArtifactRequest(artifact_id=v["v1"]))
        at_last = await listed()

    available, is_loaded, in_force = 1, 2, 3
    rest = [("v0", v["v0"], available), ("v1", v["v1"], available)]
    assert at_first == at_last == [("v2", v["v2"], in_force), *rest]
    assert beside == [("v2", v["v2"], in_force), ("v1", v["v1"], is_loaded), rest[0]]
    assert (loaded.artifact.artifact_id, loaded.artifact.state, loaded.artifact.catalog_version) == (
        v["v1"],
        is_loaded,
        1,
    )
    assert (activated.artifact.artifact_id, activated.previous_artifact_id) == (v["v1"], v["v2"])
    assert (back.artifact.artifact_id, back.previous_artifact_id) == (v["v2"], v["v1"])
    done = {"caller": "ip:127.0.0.1", "outcome": "done"}
    default = {"artifact_name": "default", **done}
    assert audited() == [
        {"action": "LoadArtifact", "artifact_id": v["v1"], **default},
        {"action": "ActivateArtifact", "artifact_id": v["v1"], "previous_artifact_id": v["v2"], **default},
        {"action": "RollbackArtifact", "artifact_id": v["v2"], "previous_artifact_id": v["v1"], **default},
        {"action": "UnloadArtifact", "artifact_id": v["v1"], **done},
    ]


async def test_what_cannot_be_done_is_refused_and_audited(serving, folder: Path, audited):
    """Damaged, unknown, in force, a path for a version: a reason each, nothing done, no word of the caller's kept."""
    v = ids(folder)
    async with serving() as stub:
        refusals = [
            await refusal(call)
            for call in (
                stub.ActivateArtifact(pb.ActivateArtifactRequest(version="v0")),
                stub.LoadArtifact(pb.LoadArtifactRequest(version="../versions/v1")),
                stub.LoadArtifact(pb.LoadArtifactRequest(name="DOE^JOHN")),
                stub.ActivateArtifact(pb.ActivateArtifactRequest(artifact_id="0" * 64)),
                stub.UnloadArtifact(pb.UnloadArtifactRequest(artifact_id=v["v2"])),
                stub.RollbackArtifact(pb.RollbackArtifactRequest()),
                stub.ActivateArtifact(pb.ActivateArtifactRequest(version="v1", artifact_id=v["v1"])),
            )
        ]
        answer = await stub.ListArtifacts(pb.ListArtifactsRequest())

    refused, missing = ("FAILED_PRECONDITION", "ARTIFACT_REFUSED"), ("NOT_FOUND", "ARTIFACT_NOT_FOUND")
    invalid = ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refusals == [refused, missing, missing, missing, refused, refused, invalid]
    assert (answer.artifacts[0].artifact_id, answer.artifacts[0].state) == (v["v2"], 3)
    assert [line["outcome"] for line in audited()] == ["refused"] * 6
    assert "DOE" not in json.dumps(audited())


async def test_a_caller_that_leaves_does_not_undo_it(serving, folder: Path, engine, audited, until):
    """An activation that has begun is finished, and audited, although the caller is gone."""
    begun, free = threading.Event(), threading.Event()

    def open_engine(artifact: Artifact) -> Any:
        begun.set()
        assert free.wait(20)
        return engine

    async with serving(open_engine=open_engine) as stub:
        call = stub.ActivateArtifact(pb.ActivateArtifactRequest(version="v1"))
        await until(begun.is_set)
        call.cancel()
        before = await stub.ListArtifacts(pb.ListArtifactsRequest())
        free.set()
        await until(lambda: len(audited()) == 1)
        after = await stub.ListArtifacts(pb.ListArtifactsRequest())

    v = ids(folder)
    assert [answer.artifacts[0].artifact_id for answer in (before, after)] == [v["v2"], v["v1"]]


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"admin_service": False}, "UNIMPLEMENTED"), ({"anonymous_scopes": ("read",)}, "PERMISSION_DENIED")],
)
async def test_nobody_else_may(serving, folder: Path, settings: dict[str, Any], code: str):
    """The service is there only where it was asked for, and for callers with the scope admin only."""
    async with serving(**settings) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RollbackArtifact(pb.RollbackArtifactRequest())

    assert caught.value.code().name == code


async def test_the_command_line_does_the_same(serving, folder: Path, capsys):
    """`deepmcat artifacts` activates by version, goes back, unloads by the first digits of an id, and shows all."""
    v1 = ids(folder)["v1"]
    steps = [["activate", "v1"], ["rollback"], ["unload", v1[:10]], ["list"], ["unload", v1[:10]], ["activate", "v9"]]
    async with serving() as stub:
        ended = []
        for step in steps:
            code = await asyncio.to_thread(main, ["artifacts", *step, "--server", stub.address])
            printed = capsys.readouterr()
            ended.append((code, [line.split()[1:4] for line in printed.out.splitlines()[1:]], printed.err))
    async with serving(admin_service=False) as stub:
        code_without = await asyncio.to_thread(main, ["artifacts", "list", "--server", stub.address])

    first_row = [rows[0][0] if rows else "" for _, rows, _ in ended]
    assert first_row == ["v1", "v2", "v2", "v2", "", ""]
    assert [code for code, _, _ in ended] == [0, 0, 0, 0, 2, 2]
    assert ended[1][1][1][:1] + ended[2][1][1][:1] == ["v1", "v0"]
    assert "loaded" in ended[4][2]
    assert "no such version" in ended[5][2]
    assert code_without == 2
    assert "admin_service" in capsys.readouterr().err
