"""A server process that can be stopped and started again at its address."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from deepmcat_core.decode_limits import WorkerLimits

WORKERS = 2
DECODE_MEMORY_BYTES = 512 * 2**20
CHUNK_TIMEOUT_S = 4
LIMITS = WorkerLimits(memory_bytes=DECODE_MEMORY_BYTES)
START_S, STOP_S = 120, 90

SETTINGS = {
    "decode_workers": WORKERS,
    "decode_memory_bytes": DECODE_MEMORY_BYTES,
    "chunk_timeout_s": CHUNK_TIMEOUT_S,
    "artifact_poll_s": 0.5,
    "catalog_poll_s": 0.5,
    "drain_s": 1,
    "grace_s": 60,
    "admin_service": "true",
    "anonymous_scopes": '["categorize", "read", "admin"]',
}

# glibc gives memory back when it is free, so that what a server has at rest is what it holds.
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}

State = Literal["down", "up", "closing"]


class Replica:
    """One server. turns: how often its state has changed, so that a look at it can be told from one across a change."""

    def __init__(self, name: str, artifact: Path, folder: Path, defect: str = "") -> None:
        self.name = name
        self.state: State = "down"
        self.turns = 0
        self.address, self.admin = _free_address(), _free_address()
        self.temporary = folder / f"tmp-{name}"
        self.temporary.mkdir()
        self.log = folder / f"{name}.log"
        self._ready = folder / f"{name}.ready"
        program = ["tests.soak.defects", defect] if defect else ["deepmcat_client"]
        sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        ports = ["--listen", self.address, "--admin", self.admin, "--ready-file", str(self._ready)]
        self._command = [sys.executable, "-m", *program, "serve", str(artifact), *ports, *sets]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start, and wait until it serves."""
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            environment = os.environ | MALLOC | {"TMPDIR": str(self.temporary)}
            self._process = await asyncio.create_subprocess_exec(*self._command, stderr=log, env=environment)
        async with asyncio.timeout(START_S):
            while not self._ready.exists():
                if self._process.returncode is not None:
                    raise RuntimeError(f"replica {self.name} ended with {self._process.returncode}: {self.last_words}")
                await asyncio.sleep(0.05)
        assert json.loads(self._ready.read_text())["listen"] == self.address
        self._turn("up")

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._turn("closing")
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                return await self._process.wait()
        finally:
            self._turn("down")

    async def kill(self) -> None:
        """Make sure that it is gone."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @property
    def workers(self) -> list[int]:
        """Its decoding processes."""
        return [pid for pid in children(self.pid) if b"spawn_main" in _command_line(pid)]

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-2000:]

    def _turn(self, state: State) -> None:
        self.state = state
        self.turns += 1


def children(parent: int) -> list[int]:
    """The processes that another has started."""
    found: list[int] = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def addresses(replicas: Sequence[Replica]) -> str:
    """A target of our client."""
    return ",".join(replica.address for replica in replicas)
