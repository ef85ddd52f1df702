"""A server process and its children: pinned to its cores, and what they take of processor time and memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02


class Cores(NamedTuple):
    """Servers and what loads them have cores of their own, the same for every server."""

    servers: tuple[int, ...]
    load: tuple[int, ...]


def cores() -> Cores:
    """The first half for servers, the other for the load; a single core is shared."""
    ours = sorted(os.sched_getaffinity(0))
    half = max(1, len(ours) // 2)
    return Cores(servers=tuple(ours[:half]), load=tuple(ours[half:] or ours))


class Memory(NamedTuple):
    """Of all processes together. rss: pages that several have count once each; pss: shared out among them."""

    rss_bytes: int
    pss_bytes: int


class Process:
    """A process on its cores, with a log file; leaving the context ends it and whatever it started."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        on: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | dict(environment or {}),
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, on),  # nothing here has threads
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_until(self, ready: Callable[[], bool]) -> float:
        """Seconds from the start until it is. Raises NotStarted, with the log's end."""
        while not ready():
            if self.ended or time.monotonic() - self.started > START_TIMEOUT_S:
                self.kill()
                end = self.log.read_text(errors="replace")[-2000:]
                raise NotStarted(f"it did not start; {self.log} ends with:\n{end}")
            time.sleep(POLL_S)
        return time.monotonic() - self.started

    def cpu_s(self) -> float:
        """Seconds of all its processes so far, and of those of their children that have ended."""
        return sum(_ticks(pid) for pid in tree(self.pid)) / TICKS_PER_S

    def memory(self) -> Memory:
        """What all its processes have now."""
        found = [_memory(pid) for pid in tree(self.pid)]
        return Memory(sum(rss for rss, _ in found), sum(pss for _, pss in found))

    def maps(self, word: str) -> bool:
        """Whether any of its processes has loaded a file with this in its name."""
        return any(word in _read(PROC / str(pid) / "maps") for pid in tree(self.pid))

    def settle(self, timeout_s: float = 15.0) -> None:
        """Wait until it does nothing: what an overload left behind is not charged to whoever comes next."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            before = self.cpu_s()
            time.sleep(0.5)
            if self.cpu_s() - before <= 0.03:
                return

    def terminate(self) -> None:
        """SIGTERM, to the process itself."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code, when it has ended by itself; killed where it does not."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """It and whatever it started."""
        for pid in tree(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._process.wait()


class NotStarted(Exception):
    """A server that ended, or was not ready in time."""


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(root: int) -> list[int]:
    """A process and all below it, living."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, state first; none where the process is gone."""
    return _read(PROC / str(pid) / "stat").rpartition(")")[2].split()


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime: proc(5)


def _memory(pid: int) -> tuple[int, int]:
    lines = _read(PROC / str(pid) / "smaps_rollup").splitlines()
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines[1:]) if rest}
    return sizes.get("Rss", 0), sizes.get("Pss", 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
