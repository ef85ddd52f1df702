"""Images a second beside other servers, each with the same encoder, threads and limit of a batch, taken in turn.

`saturated`: so many callers, each with one call at a time. beside a plain servicer also at overload, with deadlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.serving import contenders, overload
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.contenders import Contender, Running
from benchmarks.serving.load import Load
from benchmarks.serving.measuring import Bench, Found, loaded, started
from benchmarks.serving.observations import OK, answered_per_s, codes, percentile, ratios, spread

CALLERS = 48  # below the number of calls that our server has open at once
WARM_S, SECONDS = 1.0, 5.0
FORMS = {"1 image a call": (1, CALLERS), "16 images a call": (16, 6)}


def plain(bench: Bench) -> Found:
    """Ours, a plain servicer with the same engine, the same with a bounded queue, and one with eager torch."""
    found: Found = {}
    bounded = contenders.plain("plain, queue of 64", "--queue", "64")
    steady = [contenders.ours(), contenders.plain("plain asyncio servicer"), bounded]
    eager = contenders.plain("plain, eager torch", engine="torch")
    with ExitStack() as stack:
        running = started(stack, [*steady, eager], bench.encoding(LITE0), found)
        found["saturated"] = _rounds(bench, running, 1, CALLERS)
        found["ratios"] = ratios(found["saturated"])
        capacity = found["saturated"]["plain asyncio servicer"]["per_s"]["median"]
        found["offered"] = overload.OVER * capacity
        rounds: dict[str, list[Found]] = {}
        for seed in range(bench.rounds):
            for server in running[: len(steady)]:
                rounds.setdefault(server.name, []).append(overload.one(bench, server, found["offered"], seed))
        found["overloaded"] = {name: overload.summary(each, capacity) for name, each in rounds.items()}
    return found


def through_tritonclient(bench: Bench) -> Found:
    """The client of that name, for all."""
    found: Found = {}
    with ExitStack() as stack:
        everybody: Sequence[Contender] = (contenders.ours(), contenders.triton(), contenders.mlserver())
        running = started(stack, everybody, bench.encoding(LITE0), found)
        for name, (images, callers) in FORMS.items():
            saturated = _rounds(bench, running, images, callers, way="tritonclient")
            found[name] = {"saturated": saturated, "ratios": ratios(saturated)}
    return found


def _rounds(bench: Bench, running: Sequence[Running], images: int, callers: int, way: str = "") -> Found:
    rounds: dict[str, list[Found]] = {}
    for _ in range(bench.rounds):
        for server in running:
            rounds.setdefault(server.name, []).append(saturated(bench, server, images, callers, way))
    return {
        name: {
            "per_s": spread([each["per_s"] for each in of])._asdict(),
            "cpu_ms": spread([each["cpu_ms"] for each in of])._asdict(),
            "rounds": of,
        }
        for name, of in rounds.items()
    }


def saturated(bench: Bench, server: Running, images: int, callers: int, way: str = "") -> Found:
    warm_s, seconds = bench.seconds(WARM_S), bench.seconds(SECONDS)
    cpu_s = server.process.cpu_s()
    load = Load(address="", way=way or server.way, callers=callers, images=images, seconds=warm_s + seconds)
    observed = loaded(bench, server, load)
    calls = observed.calls
    begin = min(call.due for call in calls) + warm_s
    answered = images * sum(call.code == OK for call in calls)
    return {
        "per_s": images * answered_per_s(calls, begin, begin + seconds),
        "cpu_ms": 1e3 * (server.process.cpu_s() - cpu_s) / max(1, answered),
        "client_cpu_ms": 1e3 * observed.cpu_s / max(1, answered),
        "p50_ms": 1e3 * percentile(calls, 0.5),
        "codes": codes(calls),
    }
