"""`python -m benchmarks.quality`: run what is missing, then print and, with `report`, write what is known."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.quality import cells, commands, corpus, problems, report
from benchmarks.quality.cells import Cell
from benchmarks.quality.corpus import Corpus
from benchmarks.quality.features import Store
from benchmarks.quality.methods import METHODS
from benchmarks.quality.worker import Job, features, in_process, run

from deepmcat_core.engine import choose_device
from deepmcat_core.errors import DeepmcatError

DOCS = Path(__file__).parents[2] / "docs"
SEEDS = 3
QUICK_LABEL_IMAGES = 400
EMBEDDING_IMAGES_PER_S = 250.0  # two cores; for the estimate alone


def main() -> int:
    """The command."""
    options = _options()
    try:
        return _run(options)
    except DeepmcatError as error:
        print(error, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    data = Path(os.environ.get("DEEPMCAT_DATA", "")).absolute()
    work = options.work
    if not (work / "dataset").exists() and (lacking := corpus.missing(data)):
        print(
            f"skipped: $DEEPMCAT_DATA has no {', '.join(lacking)}; docs/data.md says where to get it", file=sys.stderr
        )
        return 0
    made = corpus.make(data, work)
    if options.quick:
        made, work = made.limited(QUICK_LABEL_IMAGES), work / "quick"
    slow = options.slow or options.action == "report"
    methods = [m for m in METHODS if slow or not m.slow or any(m.name in part for part in options.only)]
    wanted = list(cells.every(list(problems.every(made)), methods, range(options.seeds), made.digest_of))
    folder = work / "cells"
    if options.action == "commands":
        commands.measure(data / "mednist.tar", folder)
        return 0
    failed = 0
    if options.action == "run":
        missing = [cell for cell in cells.chosen(wanted, options.only) if not cell.path(folder).is_file()]
        failed = _fill(missing, made, work, choose_device(options.device), options.hours)
    found = cells.find(wanted, folder, keep_stale=options.keep_stale)
    if options.action == "report":
        docs = work / "docs" if options.quick else DOCS  # a check must not replace what was measured
        written = report.write(found, commands.current(folder), list(problems.every(made)), docs, quick=options.quick)
        print("\n".join(f"written: {path}" for path in written))
    else:
        print(report.summary(found))
    return 1 if failed else 0


def _fill(missing: Sequence[Cell], made: Corpus, work: Path, device: str, hours: float | None) -> int:
    """Make the missing cells, one after the other; returns how many failed."""
    start = time.monotonic()
    store = Store(folder=work / "features", digest=made.digest, rows=made.rows)
    needed = dict.fromkeys(cell.method.source(cell.seed) for cell in missing if cell.method.source)
    to_embed = [source for source in needed if not store.path(source).is_file()]
    known = cells.read_all(work / "cells")
    known = [record for record in known if "wall_s" in record]
    seconds = [cell.expected_seconds(known) for cell in missing]
    whole = sum(seconds) + len(to_embed) * len(made.rows) / EMBEDDING_IMAGES_PER_S
    _say(f"{len(missing)} cells to make, {len(to_embed)} encoders to run: about {whole / 60:.0f} min")
    failed = 0
    for number, (cell, expected) in enumerate(zip(missing, seconds, strict=True), start=1):
        used = time.monotonic() - start
        if hours is not None and used + expected > hours * 3600:
            _say(f"the time is up: {len(missing) - number + 1} cells are left; the same command goes on with them")
            break
        source = cell.method.source(cell.seed) if cell.method.source else None
        if source in to_embed:
            _say(f"embedding {len(made.rows):,} images with {source.name}")
            to_embed.remove(source)
            if not in_process(features, made.path, store, source, device, machine.describe()):
                return failed + 1
        began = time.monotonic()
        done = in_process(run, _job(cell, made, store, work, device))
        failed += not done
        took = time.monotonic() - began
        _say(f"{number}/{len(missing)} {cell.name}: {f'{took:.1f} s' if done else 'failed'}")
    return failed


def _job(cell: Cell, made: Corpus, store: Store, work: Path, device: str) -> Job:
    return Job(
        dataset=made.path, store=store, problem=cell.problem, method=cell.method.name, seed=cell.seed, device=device,
        cell=cell.name, hash=cell.hash(), path=cell.path(work / "cells"), machine=machine.describe(),
    )  # fmt: skip


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "action", nargs="?", choices=("run", "report", "commands"), default="run",
        help="make what is missing; write docs/benchmarks.md; or time prepare and train as commands",
    )  # fmt: skip
    parser.add_argument("--work", type=lambda text: Path(text).absolute(), default=Path("runs/quality").absolute())
    parser.add_argument("--only", action="append", default=[], help="a part of a cell's name, or a glob; repeatable")
    parser.add_argument("--seeds", type=int, default=None, help=f"how many, from 0; {SEEDS}, with --quick 1")
    parser.add_argument("--hours", type=float, help="start no cell that would end later than this")
    parser.add_argument("--slow", action="store_true", help="paper mode and end-to-end recipes too")
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK_LABEL_IMAGES} images a label, one seed")
    parser.add_argument("--keep-stale", action="store_true", help="show results of older code, marked")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.quick else SEEDS)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
