"""From the start of the process until it takes calls, and the memory of all its processes after some."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.serving import contenders
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.load import Load
from benchmarks.serving.measuring import Bench, Found, loaded
from benchmarks.serving.observations import spread

STARTS = 5
CALLERS, SECONDS = 16, 2.0


def measure(bench: Bench) -> Found:
    """Ours and Triton in turn."""
    found: Found = {"servers": {}}
    task = bench.encoding(LITE0)
    rounds: dict[str, list[Mapping[str, float]]] = {}
    for _ in range(1 if bench.quick else STARTS):
        for contender in (contenders.ours(), contenders.triton(), contenders.mlserver()):
            if contender.missing:
                found.setdefault("missing", set()).add(contender.missing)
                continue
            with contender.running(task) as server:
                start_cpu_s = server.process.cpu_s()
                loaded(bench, server, Load(address="", way=server.way, callers=CALLERS, seconds=bench.seconds(SECONDS)))
                memory = server.process.memory()
                rounds.setdefault(server.name, []).append(
                    {
                        "start_s": server.started_s,
                        "start_cpu_s": start_cpu_s,
                        "rss_mb": memory.rss_bytes / 2**20,
                        "pss_mb": memory.pss_bytes / 2**20,
                        "torch": float(server.process.maps("libtorch")),
                    }
                )
    for name, of in rounds.items():
        found["servers"][name] = {key: spread([each[key] for each in of])._asdict() for key in of[0]}
    if "missing" in found:
        found["missing"] = sorted(found["missing"])
    return found
