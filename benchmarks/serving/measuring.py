"""What every row measures with: loads in processes of their own, scrapes, and rounds that take contenders in turn."""

from __future__ import annotations

import itertools
import json
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.serving import artifacts
from benchmarks.serving.contenders import Contender, Running, Task, encoding
from benchmarks.serving.load import Load
from benchmarks.serving.observations import Call, calls_of, samples
from benchmarks.serving.processes import Cores, NotStarted, Process, cores

from deepmcat_core.artifact import Artifact

Found = dict[str, Any]


class RowFailed(Exception):
    """What was to be measured did not happen: there is no result, and the other rows go on."""


class Observed(NamedTuple):
    """What a load came to. latest_s: by how much the client was late at worst. cpu_s: its own."""

    calls: list[Call]
    latest_s: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a row works, and how long. quick: seconds instead of minutes; to see that it runs, not to be quoted."""

    folder: Path
    quick: bool

    @property
    def cores(self) -> Cores:
        return cores()

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    def seconds(self, usual: float) -> float:
        return min(usual, 1.5) if self.quick else usual

    def count(self, usual: int) -> int:
        return max(4, usual // 10) if self.quick else usual

    def artifact(self, encoder: str, seed: int = 0) -> Path:
        """Made once a run."""
        return artifacts.make(encoder, self.folder / f"{encoder}-{seed}", seed)

    def encoding(self, encoder: str) -> Task:
        """The task of running this encoder."""
        path = self.artifact(encoder)
        return encoding(self.folder, path, Artifact.load(path).manifest.dim, self.cores)


class Loading:
    """A load that is on its way, from a process of its own on the load's cores."""

    _numbers = itertools.count()

    def __init__(self, bench: Bench, load: Load) -> None:
        number = next(self._numbers)
        spec, self._result = bench.folder / f"load-{number}.json", bench.folder / f"calls-{number}.json"
        spec.write_text(json.dumps(asdict(load)))
        command = [sys.executable, "-m", "benchmarks.serving.load", spec, self._result]
        self._process = Process(command, log=bench.folder / f"load-{number}.log", on=bench.cores.load)

    def wait_until_begun(self) -> None:
        """Until its first call is due."""
        self._process.wait_until(Path(f"{self._result}.begun").exists)

    def observed(self) -> Observed:
        """When it has ended."""
        with self._process as process:
            process.wait_until(self._result.exists)
        found = json.loads(self._result.read_text())
        self._result.unlink()
        return Observed(calls_of(found["calls"]), found["latest_s"], found["cpu_s"])


def loaded(bench: Bench, server: Running, load: Load) -> Observed:
    """A load from its beginning to its end, after which the server has come to rest."""
    observed = Loading(bench, replace(load, address=server.address, way=load.way or server.way)).observed()
    server.process.settle()
    return observed


def started(stack: ExitStack, contenders: Sequence[Contender], task: Task, found: Found) -> list[Running]:
    """Those that can run here. found: gets a sentence for each that cannot."""
    running = []
    for contender in contenders:
        if contender.missing:
            found.setdefault("missing", []).append(contender.missing)
            continue
        try:
            running.append(stack.enter_context(contender.running(task)))
        except NotStarted as error:
            print(f"{contender.name}: {error}", file=sys.stderr)
            found.setdefault("missing", []).append(f"{contender.name}: it did not start here")
    return running


def scrape(server: Running) -> dict[str, float]:
    """Our server's metrics now."""
    with urllib.request.urlopen(f"http://{server.admin}/metrics") as response:
        return samples(response.read().decode())
