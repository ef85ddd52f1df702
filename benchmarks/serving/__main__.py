"""Serving, measured: ours beside Triton, MLServer, Ray Serve and what one would write oneself, on loopback.

    make bench-serving [ARGS="--quick"] [ARGS="--only overload,drain"] [ARGS="--again"]
    make bench-serving ARGS=--page          write the measured part of docs/serving.md; measures nothing

Servers run on the first half of the cores, what loads them on the other. Rows that runs/serving.json has of the same
sources, versions and machine are not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.serving import contenders, page, rows
from benchmarks.serving.measuring import Bench, RowFailed
from benchmarks.serving.processes import NotStarted, cores

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("core", "server", "clients", "protos", "benchmarks/serving")


def main() -> int:
    options = _options()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.page:
        if not report:
            raise SystemExit(f"there is no {options.out}: measure first, with make bench-serving")
        page.write(report)
        return 0
    os.environ.setdefault("PYTHONPATH", str(ROOT))  # for the processes that are started
    basis = _basis(quick=options.quick)
    todo = rows.plan(options.only, () if options.again else rows.done(report, basis))
    print(f"{len(todo)} rows: {', '.join(row.name for row in todo)}; about {_minutes(todo, options.quick):.0f} minutes")
    failed = 0
    for row in todo:
        try:
            report = _measured(row, report, basis, options)
        except (RowFailed, NotStarted) as error:
            failed += 1
            print(f"{row.name}: {error}", file=sys.stderr)
            continue
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(page.table(report) if report else "nothing was measured")
    print(f"written to {options.out}; --page writes docs/serving.md from it")
    return 1 if failed else 0


def _measured(
    row: rows.Row, report: dict[str, Any], basis: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The report with this row."""
    on, begin = machine.describe(), time.monotonic()
    print(f"{row.name}: {row.title} …", flush=True)
    with tempfile.TemporaryDirectory(prefix="serving-", dir=options.folder) as folder:
        found = row.measure(Bench(folder=Path(folder), quick=options.quick))
    took_s = time.monotonic() - begin
    print(f"{row.name}: {took_s:.0f} s", flush=True)
    entry = {"basis": basis, "machine": on, "took_s": took_s, "found": found}
    return {"benchmark": "serving", "rows": report.get("rows", {}) | {row.name: entry}}


def _basis(*, quick: bool) -> dict[str, Any]:
    """What a result depends on."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return {
        "sources": digest.hexdigest()[:16],
        "versions": machine.describe()["versions"],
        "peers": contenders.versions(),
        "node": platform.node(),
        "cores": [list(part) for part in cores()],
        "quick": quick,
    }


def _minutes(todo: list[rows.Row], quick: bool) -> float:
    return max(1.0, sum(row.minutes for row in todo) / (4 if quick else 1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: a check that it all works")
    parser.add_argument("--only", type=lambda text: text.split(","), help=", ".join(row.name for row in rows.ROWS))
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--page", action="store_true", help="write docs/serving.md from the JSON; measures nothing")
    parser.add_argument("--folder", type=Path, help="where files lie meanwhile; none: the system's")
    parser.add_argument("--out", type=Path, default=Path("runs/serving.json"), help="the JSON to write, or to read")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
