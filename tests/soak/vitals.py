"""What a server's processes hold, sampled: memory, descriptors, threads, children, shared memory, temporary files."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from .replica import Replica, children
from .scene import Scene
from .watch import idle_within

SAMPLE_S = 1.0
REST_S = 90  # for slow callers to finish what they are at
SETTLE_S = 2.0
SHARED_MEMORY = Path("/dev/shm")
MOST_PAIRS = 600  # samples that a slope looks at, evenly spaced: all pairs of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One sample. workers_rss_bytes: of the decoding workers together. at_s: monotonic."""

    at_s: float
    rss_bytes: int
    workers_rss_bytes: int
    descriptors: int
    threads: int
    children: int
    shared: int
    temporary: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from others that get its number later by when it began, in the kernel's ticks."""

    pid: int
    began: int

    @property
    def is_alive(self) -> bool:
        """Whether it runs still."""
        return self.began != 0 and _began(self.pid) == self.began


@dataclass
class Series:
    """All samples of a replica. at_rest: those taken while nobody sent anything.

    shared: every name in shared memory that it or its workers ever had.
    """

    replica: Replica
    samples: list[Vitals] = field(default_factory=list)
    at_rest: list[Vitals] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    processes: set[Process] = field(default_factory=set)

    def sample(self) -> None:
        """Take one more."""
        pid, workers = self.replica.pid, self.replica.workers
        shared = set().union(*(_shared(each) for each in (pid, *workers)))
        self.shared |= shared
        self.processes |= {Process(each, _began(each)) for each in (pid, *children(pid))}
        status = _status(pid)
        self.samples.append(
            Vitals(
                at_s=time.monotonic(),
                rss_bytes=1024 * status.get("VmRSS", 0),
                workers_rss_bytes=sum(1024 * _status(worker).get("VmRSS", 0) for worker in workers),
                descriptors=len(_names(Path(f"/proc/{pid}/fd"))),
                threads=status.get("Threads", 0),
                children=len(children(pid)),
                shared=len(shared),
                temporary=sum(len(files) for _, _, files in os.walk(self.replica.temporary)),
            )
        )

    def middle(self, name: str, start: float, end: float) -> float:
        """The median of a value between two parts of the run, 0 to 1."""
        count = len(self.samples)
        return median(getattr(v, name) for v in self.samples[int(start * count) : max(1, int(end * count))])


async def rest_now_and_then(scene: Scene, series: Series, every_s: float) -> None:
    """Samples of a server that has nothing inside: what it holds then, it holds for good."""
    while await scene.rest(every_s):
        with scene.at_rest():
            await rest(series)
            scene.ledger.happens("rests")


async def rest(series: Series) -> dict[str, float]:
    """A sample as soon as nothing is inside; the gauges that are not 0 although nobody sends anything."""
    left = await idle_within(series.replica, REST_S)
    await asyncio.sleep(SETTLE_S)
    series.sample()
    series.at_rest.append(series.samples[-1])
    return left


async def watch_vitals(scene: Scene, series: Series) -> None:
    """Samples until the run is over."""
    while await scene.rest(SAMPLE_S):
        series.sample()


def theil_sen(times: Sequence[float], values: Sequence[float]) -> float:
    """The median slope between pairs of points (Theil 1950, Sen 1968): what comes and goes does not tilt it."""
    step = max(1, len(times) // MOST_PAIRS)
    x, y = np.asarray(times[::step], float), np.asarray(values[::step], float)
    first, second = np.triu_indices(len(x), 1)
    if not len(first):
        return 0.0
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def _status(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", text, re.MULTILINE)}


def _began(pid: int) -> int:
    """proc(5): the 22nd field of stat. 0 where there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _shared(pid: int) -> set[str]:
    """What a process has in shared memory, mapped or open."""
    try:
        mapped = re.findall(rf"{SHARED_MEMORY}/(\S+)", Path(f"/proc/{pid}/maps").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return set()
    links = []
    for name in _names(Path(f"/proc/{pid}/fd")):
        try:
            links.append(str(Path(f"/proc/{pid}/fd/{name}").readlink()))
        except OSError:
            continue
    return {
        *mapped,
        *(link.removeprefix(f"{SHARED_MEMORY}/") for link in links if link.startswith(f"{SHARED_MEMORY}/")),
    }


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # names are all that is needed
    except OSError:
        return []
