"""One of several fronts: a process that is started again when it ends, and ended when it hangs."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from pathlib import Path

from prometheus_client import CollectorRegistry

from deepmcat_server.addresses import Address
from deepmcat_server.admin import Admin
from deepmcat_server.front import Front

ANY, NOBODY = Address("127.0.0.1", 0), Address("127.0.0.1", 2)


def serving(ready_file: Path, admin: Address = NOBODY) -> list[str]:
    """A process that says it is SERVING and waits for the end of its standard input."""
    addresses = json.dumps({"listen": "127.0.0.1:1", "admin": str(admin)})
    return ["sh", "-c", f"echo '{addresses}' > {ready_file}.partial; mv {ready_file}.partial {ready_file}; exec cat"]


async def test_a_front_that_keeps_dying_waits_longer_each_time(tmp_path: Path, log):
    """It is started again as often as it dies, and a stop ends the waiting."""
    gone: set[Path] = set()
    died: list[bool] = []
    ended: list[None] = []

    folders: set[Path] = set()

    def command(ready_file: Path) -> list[str]:
        folders.add(ready_file.parent)
        return serving(ready_file)

    def on_change() -> None:
        if front.admin is not None:
            assert front.admin == NOBODY
            shutil.rmtree(next(iter(folders - gone)))  # as what cleans up old temporary files does
            gone.update(folders)
            front.kill()
        else:
            ended.append(None)

    def on_restart() -> None:
        died.append(front.admin is None)
        if len(died) == 4:
            front.stop()

    front = Front(1, command, lambda folder: b"", on_change=on_change, on_restart=on_restart, first_wait_s=0.01)
    assert await front.keep() == 0

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["front"], line["code"]) for line in lines] == [("front died", 1, 137)] * 4
    assert [line["duration_s"] for line in lines] == [0.01, 0.02, 0.04, 0.08]
    assert died == [True] * 4
    assert len(ended) == 4  # none was started after the stop


async def test_a_front_that_settled_waits_as_at_first(log):
    """What counts is how long it was SERVING: one that takes long to start and dies of that waits twice as long."""
    starts = [serving, serving, lambda _: ["false"], lambda _: ["false"], serving]
    died: list[None] = []

    def on_change() -> None:
        if front.admin is not None:
            front.kill()

    def on_restart() -> None:
        died.append(None)
        if len(died) == len(starts):
            front.stop()

    front = Front(
        0, lambda file: starts[len(died)](file), lambda folder: b"", on_change=on_change, on_restart=on_restart,
        first_wait_s=0.01, settled_s=0,
    )  # fmt: skip
    await front.keep()

    assert [json.loads(line)["duration_s"] for line in log.getvalue().splitlines()] == [0.01, 0.01, 0.02, 0.04, 0.01]


async def test_a_front_that_a_signal_ends_before_it_serves_is_told(log):
    """It could say nothing itself; one that ends by itself has said why, and nobody says it again."""
    codes = []
    for command in ("kill -SEGV $$", "exit 2"):
        front = Front(
            0, lambda _, it=command: ["sh", "-c", it], lambda folder: b"",
            on_change=lambda: None, on_restart=lambda: None,
        )  # fmt: skip
        codes.append(await front.keep())

    assert codes == [139, 2]
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["code"]) for line in lines] == [("front not started", 139)]


async def test_a_front_whose_ready_file_cannot_be_read_is_ended(log):
    """It would serve, and nobody would know: it is as good as one that hangs."""
    front = Front(
        0, lambda file: ["sh", "-c", f"echo nothing > {file}; exec cat"], lambda folder: b"",
        on_change=lambda: None, on_restart=lambda: None,
    )  # fmt: skip
    assert await front.keep() == 137
    assert "front hangs" in log.getvalue()


async def test_a_front_that_hangs_is_ended(log):
    """One that does not answer is killed and started again; one that answers is not, even where it is not ready."""
    restarted: list[None] = []
    with Admin(ANY, CollectorRegistry()) as answering, socket.create_server(ANY) as silent:
        answering.ready = True
        admins = [Address(*silent.getsockname()), answering.address]

        def command(ready_file: Path) -> list[str]:
            return serving(ready_file, admins[len(restarted)])

        front = Front(
            0, command, lambda folder: b"", on_change=lambda: None, on_restart=lambda: restarted.append(None),
            first_wait_s=0.01, ask_every_s=0.05, answer_s=0.5,
        )  # fmt: skip
        keeping = asyncio.create_task(front.keep())
        while front.admin != admins[1]:  # noqa: ASYNC110 - `on_change` comes before and after
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)  # many times as long as the first one had
        assert front.is_ready
        answering.ready = False
        while front.is_ready:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert not keeping.done()
        front.stop()
        await keeping

    events = [(line["event"], line["front"]) for line in map(json.loads, log.getvalue().splitlines())]
    assert events == [("front hangs", 0), ("front died", 0)]
    assert len(restarted) == 1
