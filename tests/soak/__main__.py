"""`make soak`: two real servers under everything at once, for as long as is asked.

    callers   our client, Triton's, and clients of their own: good images, hostile ones, slow, vanishing, offending
    faults    decoding workers killed and stopped, artifacts and names changed, one server restarted again and again
    watchers  health, metrics, memory, descriptors, threads, processes, shared memory, temporary files

Every answer is compared with what the library says of the artifact and catalog that the answer names. Exit code 1 where
a promise broke. The same seed sends the same images in the same order, caller by caller; when faults meet them is up to
the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import faults, library_callers, offenders, promises, report, vanishing, wire_callers
from .defects import DEFECTS
from .ledger import Ledger
from .oracle import Oracle
from .promises import Promise
from .replica import LIMITS, Replica
from .scene import Scene
from .shelf import Shelf
from .specimens import specimens
from .vitals import Series, rest, rest_now_and_then, watch_vitals
from .watch import watch_health, watch_metrics

FINISH_S = 240  # for what callers have under way when the time is over
RESTS, SHORTEST_S = 8, 50  # of a run, and how long it goes on between two at least
LAST_S = 10  # for its processes to be gone
CALLERS = {
    library_callers.stream: 2,
    library_callers.call: 3,
    wire_callers.hostile: 2,
    wire_callers.slow_reader: 1,
    wire_callers.slow_sender: 2,
    vanishing.cancelling: 1,
    vanishing.cutting: 1,
    vanishing.killed: 1,
    offenders.offend: 1,
    offenders.stall: 1,
    offenders.babble: 1,
}  # so many of each


def main() -> int:
    """Run; 1 where a promise broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="for the same images again")
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"), help="(default: %(default)s)")
    parser.add_argument("--defect", choices=DEFECTS, default="", help="serve with it, to see the soak fail")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="deepmcat-soak-"))
    print(f"seed {options.seed}, {options.minutes:g} minutes, logs in {folder}", flush=True)
    broken = asyncio.run(_soak(options, folder))
    if broken:
        print(f"the servers' logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


async def _soak(options: argparse.Namespace, folder: Path) -> bool:
    """Whether a promise broke."""
    shelf = Shelf(folder)
    oracle = await asyncio.to_thread(Oracle, shelf, specimens(options.seed), LIMITS)
    ledger = Ledger(oracle)
    replicas = [Replica(name, shelf.link, folder, options.defect) for name in ("steady", "restarted")]
    scene = Scene(seed=options.seed, replicas=replicas, oracle=oracle, ledger=ledger)
    good = sum(map(oracle.is_good, oracle.kept))
    print(f"{good} images and {len(oracle.kept) - good} that are none", flush=True)
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        series = [Series(replica) for replica in replicas]
        found = await _run(scene, shelf, series, 60 * options.minutes)
    finally:
        await asyncio.gather(*(replica.kill() for replica in replicas))
    again = f"again: make soak ARGS='--minutes {options.minutes:g} --seed {options.seed}'"
    report.show(ledger, found, again)
    run = {"minutes": options.minutes, "seed": options.seed, "defect": options.defect}
    report.record(options.out, ledger, found, series, run)
    return not all(promise.kept for promise in found)


async def _run(scene: Scene, shelf: Shelf, series: list[Series], seconds: float) -> list[Promise]:
    for each in series:
        each.sample()
    before = [each.samples[-1].descriptors for each in series]
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(each, name=name) for name, each in _callers(scene)]
        others = [group.create_task(each) for each in _others(scene, shelf, series, max(seconds / RESTS, SHORTEST_S))]
        await asyncio.sleep(seconds)
        scene.over.set()
        _, hanging = await asyncio.wait(callers + others, timeout=FINISH_S)
        for task in hanging:
            scene.ledger.breaks("hang", task.get_name(), f"not over {FINISH_S} s after the end")
            task.cancel()
    found = [*promises.of_books(scene.ledger), *promises.of_leftovers(series[0])]
    for each, descriptors in zip(series, before, strict=True):
        left = await rest(each)
        found += promises.of_rest(each.replica.name, left, (descriptors, each.samples[-1].descriptors))
    found += promises.of_memory(series[0])
    for each in series:
        code = await each.replica.stop()
        await _until(lambda each=each: not any(process.is_alive for process in each.processes), LAST_S)
        found += promises.of_end(each, code)
    return found


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, for so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.1)


def _callers(scene: Scene) -> list[tuple[str, Coroutine[Any, Any, None]]]:
    callers = dict(CALLERS)
    if find_spec("tritonclient") is not None:
        from . import triton_callers

        callers[triton_callers.call] = 1
    return [
        (f"{caller.__module__.rpartition('.')[2]}.{caller.__name__} {number}", caller(scene, number))
        for caller, count in callers.items()
        for number in range(count)
    ]


def _others(scene: Scene, shelf: Shelf, series: list[Series], rest_s: float) -> list[Coroutine[Any, Any, None]]:
    return [
        faults.kill_workers(scene),
        faults.stop_workers(scene),
        faults.swap_artifacts(scene, shelf),
        faults.rename_categories(scene, shelf),
        faults.roll_back(scene, shelf),
        faults.restart(scene, shelf),
        rest_now_and_then(scene, series[0], rest_s),
        *(watch_health(scene, replica) for replica in scene.replicas),
        *(watch_metrics(scene, replica) for replica in scene.replicas),
        *(watch_vitals(scene, each) for each in series),
    ]


if __name__ == "__main__":
    sys.exit(main())
