"""SIGTERM while calls come: which of them fail. And two of ours restarted one after the other under our client."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving import contenders
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.contenders import DRAIN_S, Contender, Task
from benchmarks.serving.load import Load
from benchmarks.serving.measuring import Bench, Found, Loading, started
from benchmarks.serving.observations import OK, codes, failed, within
from benchmarks.serving.overload import BATCH, BATCH_S, CAPACITY
from benchmarks.serving.processes import Process, free_port

from deepmcat_core.artifact import Artifact

BEFORE_S = 2.0
AFTER_S = 1.0  # the load goes on after the window
EDGE_S = 0.1  # a call so short before the end of the window may arrive after it
RATE = CAPACITY / 2
DEADLINE_S = 15.0  # long: a call that is late is no call that failed


def measure(bench: Bench) -> Found:
    found: Found = {"window_s": DRAIN_S - EDGE_S, "rate": RATE, "servers": {}}
    path = bench.artifact(LITE0)
    dim = Artifact.load(path).manifest.dim
    task = contenders.fixed(bench.folder, path, dim, bench.cores, seconds=BATCH_S, batch=BATCH)
    everybody = [
        contenders.ours("ours", way="categorize", settings=[f"drain_s={DRAIN_S}"]),
        contenders.ours("ours, by ModelInfer", settings=[f"drain_s={DRAIN_S}"]),
        contenders.triton(options=["--exit-timeout-secs=30"]),
        contenders.mlserver(),
    ]
    for contender in everybody:
        of = [_one(bench, contender, task, found) for _ in range(min(2, bench.rounds))]
        if of := [each for each in of if each]:
            found["servers"][contender.name] = {
                "sent": sum(each["sent"] for each in of),
                "failed": sum(each["failed"] for each in of),
                "open_failed": sum(each["open_failed"] for each in of),
                "codes": [each["codes"] for each in of],
                "exit_codes": [each["exit_code"] for each in of],
            }
    found["rolling"] = rolling(bench, task)
    return found


def _one(bench: Bench, contender: Contender, task: Task, found: Found) -> Found:
    with ExitStack() as stack:
        servers = started(stack, [contender], task, found)
        if not servers:
            return {}
        server = servers[0]
        load = Load(
            address=server.address,
            way=server.way,
            rate=RATE,
            seconds=BEFORE_S + DRAIN_S + AFTER_S,
            deadline_s=DEADLINE_S,
        )
        loading = Loading(bench, load)
        loading.wait_until_begun()
        time.sleep(BEFORE_S)
        signalled = time.monotonic()
        server.process.terminate()
        calls = loading.observed().calls
        window = within(calls, signalled, signalled + DRAIN_S - EDGE_S)
        before = [call for call in calls if call.due < signalled < call.due + call.seconds]
        return {
            "sent": len(window),
            "failed": failed(window),
            "open_failed": failed(before),  # sent before the signal, and not answered by then
            "codes": codes([call for call in window if call.code != OK]),
            "exit_code": server.process.wait(),
        }


def rolling(bench: Bench, task: Task) -> Found:
    """Two servers, each stopped and started again while our client streams: images lost, and sent more than once."""
    replicas = [contenders.ours(f"replica {i}", settings=["drain_s=1"], port=free_port()) for i in range(2)]
    spec, result, stop = (bench.folder / f"rolling{suffix}" for suffix in (".json", "-result.json", ".stop"))
    with ExitStack() as stack:
        running = [stack.enter_context(replica.running(task)) for replica in replicas]
        logs = [server.process.log for server in running]
        address = ",".join(server.address for server in running)
        streaming = {"address": address, "planes": 64, "stop": str(stop), "pause_s": 0.005, "images_per_call": 50}
        spec.write_text(json.dumps(streaming))
        command = [sys.executable, "-m", "benchmarks.serving.streaming", spec, result]
        client = stack.enter_context(Process(command, log=bench.folder / "rolling.log", on=bench.cores.load))
        time.sleep(3)
        exit_codes = []
        for server, replica in zip(running, replicas, strict=True):
            server.process.terminate()
            exit_codes.append(server.process.wait())
            logs.append(stack.enter_context(replica.running(task)).process.log)
            time.sleep(1)
        stop.touch()
        client.wait_until(result.exists)
        found: Found = json.loads(result.read_text())
    sent = sum(map(received, logs))
    return {key: found[key] for key in ("answered", "failed")} | {
        "lost": found["taken"] - found["answered"],
        "sent_twice": sent - found["taken"],
        "exit_codes": exit_codes,
    }


def received(log: Path) -> int:
    """The images that a server of ours got in streams, by its access log. Calls that were cut off are in it too."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return sum(line.get("images", 0) for line in lines if line.get("method") == "CategorizeStream")
