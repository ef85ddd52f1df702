"""Another artifact while calls come: how many fail, and how much longer the slowest take meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import tritonclient.grpc
from benchmarks.serving import beside, contenders
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.contenders import Contender, Running, Task
from benchmarks.serving.load import MODEL, Load
from benchmarks.serving.measuring import Bench, Found, Loading, RowFailed, scrape, started
from benchmarks.serving.observations import codes, failed, percentile, spread, total, within

SHARE = 0.4  # of the capacity
Change = Callable[[Running, Task], None]

WARM_S, BEFORE_S, MOST_S, AFTER_S = 1.0, 6.0, 12.0, 1.0


def measure(bench: Bench) -> Found:
    """Ours watches a folder of artifacts; Triton is told to load the model again."""
    found: Found = {"servers": {}}
    task, after = bench.encoding(LITE0), bench.artifact(LITE0, seed=1)
    ways: list[tuple[Contender, Change]] = [(contenders.ours(), partial(_publish, after))]
    ways.append((contenders.triton(options=["--model-control-mode=explicit", f"--load-model={MODEL}"]), _load_again))
    for contender, change in ways:
        rounds = [_one(bench, contender, task, change, seed, found) for seed in range(bench.rounds)]
        if rounds := [each for each in rounds if each]:
            found["servers"][contender.name] = {
                "sent": sum(each["sent"] for each in rounds),
                "failed": sum(each["failed"] for each in rounds),
                "switch_s": spread([each["switch_s"] for each in rounds])._asdict(),
                "p99_before_ms": spread([each["p99_before_ms"] for each in rounds])._asdict(),
                "p99_during_ms": spread([each["p99_during_ms"] for each in rounds])._asdict(),
                "ratio": spread([each["p99_during_ms"] / each["p99_before_ms"] for each in rounds])._asdict(),
                "rounds": rounds,
            }
    return found


def _one(
    bench: Bench,
    contender: Contender,
    task: Task,
    change: Change,
    seed: int,
    found: Found,
) -> Found:
    folder = bench.folder / f"versions-{time.monotonic_ns()}"
    shutil.copytree(task.artifact, folder / "v1")
    if contender.name == "ours":
        task = replace(task, artifact=folder)
    with ExitStack() as stack:
        servers = started(stack, [contender], task, found)
        if not servers:
            return {}
        server = servers[0]
        capacity = beside.saturated(bench, server, 1, beside.CALLERS)["per_s"]
        seconds = WARM_S + BEFORE_S + MOST_S
        load = Load(address=server.address, way=server.way, rate=SHARE * capacity, seconds=seconds, seed=seed)
        loading = Loading(bench, load)
        loading.wait_until_begun()
        time.sleep(WARM_S + BEFORE_S)
        begin = time.monotonic()
        change(server, task)
        end = time.monotonic()
        calls = loading.observed().calls
    first = min(call.due for call in calls)
    before = within(calls, first + WARM_S, begin)
    during = within(calls, begin, end + AFTER_S)
    return {
        "rate": SHARE * capacity,
        "sent": len(during),
        "failed": failed(during),
        "codes": codes(during),
        "switch_s": end - begin,
        "p99_before_ms": 1e3 * percentile(before, 0.99),
        "p99_during_ms": 1e3 * percentile(during, 0.99),
    }


def _publish(after: Path, server: Running, task: Task) -> None:
    """As the trainer does it: under another name, then renamed. Over when the next one is in force."""
    generation = total(scrape(server), "deepmcat_artifact_generation")
    shutil.copytree(after, task.artifact / ".v2")
    (task.artifact / ".v2").rename(task.artifact / "v2")
    _until(lambda: total(scrape(server), "deepmcat_artifact_generation") > generation)


def _load_again(server: Running, task: Task) -> None:
    """Triton loads what has changed beside what it has, and then changes over."""
    model = Path(server.process.log).parent / "models" / MODEL / "1" / "model.py"
    model.touch()
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        client.load_model(MODEL)


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + MOST_S
    while not true():
        if time.monotonic() > until:
            raise RowFailed(f"the next artifact was not in force within {MOST_S:g} seconds")
        time.sleep(0.2)
