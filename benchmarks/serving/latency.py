"""One caller, one call at a time: how long an answer takes where nobody else asks."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.serving import contenders
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.load import Load
from benchmarks.serving.measuring import Bench, Found, loaded, started
from benchmarks.serving.observations import percentile, spread, within

WARM_S, SECONDS = 0.5, 2.0
ROUNDS = 5


def measure(bench: Bench) -> Found:
    """Everybody in turn, five times."""
    found: Found = {"servers": {}}
    everybody = [
        contenders.ours(),
        contenders.ours("ours, by Categorize", way="categorize"),
        contenders.triton(),
        contenders.plain("plain asyncio servicer"),
    ]
    rounds: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        running = started(stack, everybody, bench.encoding(LITE0), found)
        for _ in range(1 if bench.quick else ROUNDS):
            for server in running:
                load = Load(address="", way=server.way, callers=1, channels=1, seconds=WARM_S + bench.seconds(SECONDS))
                calls = loaded(bench, server, load).calls
                begin = min(call.due for call in calls)
                calls = within(calls, begin + WARM_S, float("inf"))
                rounds.setdefault(server.name, []).append((percentile(calls, 0.5), percentile(calls, 0.99)))
    for name, of in rounds.items():
        found["servers"][name] = {
            "p50_ms": spread([1e3 * p50 for p50, _ in of])._asdict(),
            "p99_ms": spread([1e3 * p99 for _, p99 in of])._asdict(),
        }
    if "Triton" in rounds:
        pairs = zip(rounds["ours"], rounds["Triton"], strict=True)
        found["ratio"] = spread([ours / triton for (ours, _), (triton, _) in pairs])._asdict()
    return found
