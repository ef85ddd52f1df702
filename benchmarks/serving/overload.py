"""More calls than a server can answer, each with a deadline: how many are answered in time, what is run in vain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.serving import contenders
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.contenders import Contender, Running, Task
from benchmarks.serving.load import Load
from benchmarks.serving.measuring import Bench, Found, Loading, scrape, started
from benchmarks.serving.observations import codes, executed, good, spread, total, within

from deepmcat_core.artifact import Artifact

BATCH, BATCH_S = 8, 0.020
CAPACITY = BATCH / BATCH_S  # images a second
OVER = 2.5  # times the capacity
DEADLINE_S = 0.5
LATE_S = 0.1  # a load that sends a call later than this has not kept up
WARM_S, SECONDS = 2.0, 5.0
TUNED = "default_queue_policy { max_queue_size: 64 timeout_action: REJECT default_timeout_microseconds: 300000 }"
REFUSED = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")


def measure(bench: Bench) -> Found:
    """Everybody in turn; Ray by itself at the end, because its processes are never idle."""
    together = [
        contenders.ours("ours", way="categorize"),
        contenders.ours("ours, by ModelInfer"),
        contenders.plain("plain asyncio servicer"),
        contenders.plain("plain, queue of 64", "--queue", "64"),
        contenders.triton(),
        contenders.triton("Triton, queue policy", queue_policy=TUNED),
        contenders.mlserver(),
    ]
    found: Found = {"capacity": CAPACITY, "offered": OVER * CAPACITY, "deadline_s": DEADLINE_S, "servers": {}}
    path = bench.artifact(LITE0)
    dim = Artifact.load(path).manifest.dim
    task = contenders.fixed(bench.folder, path, dim, bench.cores, seconds=BATCH_S, batch=BATCH)
    for group in (together, [contenders.ray_serve()]):
        found["servers"] |= _of(bench, group, task, found)
    return found


def _of(bench: Bench, group: Sequence[Contender], task: Task, found: Found) -> Found:
    rounds: dict[str, list[Found]] = {}
    with ExitStack() as stack:
        running = started(stack, group, task, found)
        for seed in range(bench.rounds):
            for server in running:
                rounds.setdefault(server.name, []).append(one(bench, server, OVER * CAPACITY, seed))
    return {name: summary(each, CAPACITY) for name, each in rounds.items()}


def one(bench: Bench, server: Running, rate: float, seed: int) -> Found:
    """A load, and what became of it: from the client's view in a window, from the encoder's over all of it."""
    warm_s, seconds = bench.seconds(WARM_S), bench.seconds(SECONDS)
    server.process.settle()
    before = scrape(server) if server.admin else {}
    ran = executed(server.executed)
    load = Load(
        address=server.address, way=server.way, rate=rate, seconds=warm_s + seconds, deadline_s=DEADLINE_S, seed=seed
    )
    observed = Loading(bench, load).observed()
    server.process.settle()
    calls = observed.calls
    begin = min(call.due for call in calls) + warm_s
    window = within(calls, begin, begin + seconds)
    ran = executed(server.executed) - ran
    connecting = load.channels  # calls before the load: run, and not in it
    return {
        "good_per_s": good(window, DEADLINE_S) / seconds,
        "offered_per_s": len(window) / seconds,
        "useful": good(calls, DEADLINE_S) / max(1, ran - connecting) if server.executed.exists() else None,
        "admitted_in_time": good(calls, DEADLINE_S) / admitted(before, scrape(server), sent=len(calls))
        if before
        else None,
        "codes": codes(window),
        "client_late_s": observed.latest_s,
        "client_cpu_s": observed.cpu_s,
    }


def admitted(before: dict[str, float], after: dict[str, float], *, sent: int) -> float:
    """How many calls our server did not refuse at the door.

    One that was let in and then told to come again counts as let in: the server counts those as expired.
    """
    change = {key: value - before.get(key, 0.0) for key, value in after.items()}
    refused = total(change, "grpc_server_handled_total", 'grpc_code="RESOURCE_EXHAUSTED"')
    return max(1.0, sent - (refused - total(change, "deepmcat_expired_total")))


def summary(rounds: Sequence[Found], capacity: float) -> Found:
    """Medians, and how far the rounds are apart, of those rounds in which the load kept up, where there is one.

    kept_up: how many did. Where none did, the figures are the machine's and no server's.
    """
    steady = [each for each in rounds if each["client_late_s"] <= LATE_S]
    used = steady or rounds
    found: Found = {
        "rounds": list(rounds),
        "kept_up": len(steady),
        "client_late_s": max(each["client_late_s"] for each in used),
        "good_per_s": spread([each["good_per_s"] for each in used])._asdict(),
    }
    found["of_capacity"] = found["good_per_s"]["median"] / capacity
    for name in ("useful", "admitted_in_time"):
        values = [each[name] for each in used if each[name] is not None]
        found[name] = spread(values)._asdict() if values else None
    return found
