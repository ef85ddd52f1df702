"""Time and memory of what the trainer does to embeddings, against their number; and what that means for 10⁸ images.

    python benchmarks/scale.py [--quick] [--sizes 1e5,1e6] [--only TASK,…] [--estimate] [--out runs/scale.json]
    python benchmarks/scale.py --page [--out runs/scale.json] [--gpu runs/serving-gpu.json]

Each measurement runs in a process of its own on synthetic embeddings (scale_tasks.py): principal components, k-means
beside faiss's and scikit-learn's, the graph of neighbours, merging, the whole final stage; and, on pictures, what comes
before.
What is measured already in the file, with the same versions, is not measured again. `--page` writes the table of
docs/scale.md from the file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import scale_page
import scale_tasks
from rich.console import Console
from rich.table import Table
from scale_tasks import DIM, ITERATIONS

from deepmcat_trainer.clustering import FAR_SHARE, MOST_ROWS, default_k
from deepmcat_trainer.grouping import FinalSettings
from deepmcat_trainer.neighbours import EXACT_UP_TO, FIRST_PROBES, ROWS_PER_CELL

SIZES = (100_000, 300_000, 1_000_000, 10_000_000)
QUICK = (10_000, 30_000)
PEERS_UP_TO = 1_000_000  # more takes hours on few cores; ours trains on a sample, and goes on
WHOLE_UP_TO = 100_000  # the whole final stage, to see what a graph of a part of the images does to it
KS = (1024, 4096, 16_384)  # clusters to merge, whatever the number of images
PICTURES = 1000  # to prepare and to encode
POLL_S = 0.02


class Cell(NamedTuple):
    """A measurement: `task` on `n` embeddings, with `k` clusters where it has any."""

    task: str
    n: int
    k: int


def main() -> int:
    options = _options()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.page:
        if not report:
            raise SystemExit(f"there is no {options.out}: measure first, with python benchmarks/scale.py")
        scale_page.write(report, options.gpu)
        return 0
    measured_on = machine.describe()
    same = report.get("machine", {}).get("versions") == measured_on["versions"]
    rows = report["results"] if same else []
    done = {(row["task"], row["n"], row["k"]) for row in rows}
    sizes = options.sizes or (QUICK if options.quick else SIZES)
    cells = [cell for cell in plan(sizes, options.only) if cell not in done]
    console = Console(width=120)
    _say_estimate(cells, console)
    if options.estimate:
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as name:
        for n in sorted({cell.n for cell in cells}):
            data = Path(name) / f"{n}.npy"
            scale_tasks.write_data(data, n)
            for cell in (cell for cell in cells if cell.n == n):
                rows.append(measure(cell, data) | {"commit": measured_on["commit"]})
                console.print(f"{cell.task}, {cell.n:,} rows: {rows[-1]['seconds']:.1f} s", highlight=False)
                report = {"benchmark": "scale", "dim": DIM, "machine": measured_on, "results": rows}
                options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            data.unlink()
    print_report(rows, measured_on, console)
    print(f"written to {options.out}; --page writes docs/scale.md from it")
    return 0


def plan(sizes: Sequence[int], only: Sequence[str] | None) -> list[Cell]:
    """Everything to measure: peers and the whole stage up to a size, merging by the number of clusters."""
    cells = []
    for n in sizes:
        tasks = list(scale_tasks.OF_EMBEDDINGS) if n <= PEERS_UP_TO else ["pca", "kmeans", "graph"]
        whole = scale_tasks.WHOLE if n <= WHOLE_UP_TO else ()
        cells += [Cell(task, n, default_k(n)) for task in tasks]
        cells += [Cell(task, n, KS[0]) for task in whole]
    cells += [Cell(task, PICTURES, 0) for task in scale_tasks.OF_PICTURES]
    cells += [Cell("merge", max(min(sizes), k), k) for k in KS if k <= max(sizes) // scale_tasks.NEIGHBOURS]
    return [cell for cell in cells if only is None or cell.task in only]


def measure(cell: Cell, data: Path) -> dict[str, Any]:
    """The task in a process of its own; its largest anonymous memory is looked up while it runs.

    Pages of the data file are not counted: the system takes them back where memory is short.
    """
    command = [sys.executable, scale_tasks.__file__, cell.task, str(data), str(cell.k)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            peak = max(peak, _anonymous(child.pid))
            time.sleep(POLL_S)
        said, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{cell.task} on {cell.n:,} rows ended with exit code {child.returncode}")
    found = json.loads(said.splitlines()[-1])
    return cell._asdict() | found | {"peak_bytes": peak}


def _anonymous(pid: int) -> int:
    """Bytes of memory that are the process's own, 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def estimate(cell: Cell, flops: float) -> float:
    """Seconds that a measurement may take on a machine of `flops`: a rough count of its multiplications."""
    n, k = cell.n, cell.k
    pair = 2 * DIM  # operations of one inner product
    trained = min(n, MOST_ROWS)
    merge = 5 * 2 * k**3 + 100 * k * k  # powers of the walk, then the tree
    # iterations, the start (which is not a matrix product), the far rows' greedy start, assignment
    kmeans = pair * k * (trained * (ITERATIONS + 12) + (n > MOST_ROWS) * 30 * trained / FAR_SHARE**2 + n)
    operations = {
        "pca": 16 * n * DIM * DIM,  # float64, and copies
        "kmeans": kmeans,
        "kmeans faiss": pair * k * (min(n, 256 * k) * ITERATIONS + n),
        "kmeans minibatch": pair * k * (3 * n + 40 * k + n),
        "neighbours": pair * _search(n),
        "graph": pair * _search(min(n, FinalSettings().graph_images)),
        "group": kmeans + pair * _search(n) + merge,
        "group by part": kmeans + pair * _search(min(n, 30 * k)) + merge,
        "merge": merge,
        "encode": 3e9 * n,
        "prepare": 1e9 * n,
    }[cell.task]
    return 3 + operations / flops


def _search(n: int) -> float:
    """Inner products of the search for the neighbours of `n` images."""
    if n <= EXACT_UP_TO:
        return n * n
    cells = 4 * math.sqrt(n)
    return n * (2 * cells + 20 * FIRST_PROBES * n / cells) + 10 * ROWS_PER_CELL * cells**2


def _say_estimate(cells: Sequence[Cell], console: Console) -> None:
    a = np.random.default_rng(0).normal(size=(2000, 2000)).astype(np.float32)
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    flops = 3 * 2 * len(a) ** 3 / (time.perf_counter() - start)
    minutes = sum(estimate(cell, flops) for cell in cells) / 60
    largest = max((cell.n for cell in cells), default=0)
    console.print(
        f"{len(cells)} measurements: some {minutes:.0f} minutes on this machine as it is now "
        f"({flops / 1e9:.0f} GFLOPS), and {largest * (DIM * 4 + 8) / 2**30:.1f} GB of disk",
        highlight=False,
    )


def print_report(rows: Sequence[dict[str, Any]], measured_on: dict[str, Any], console: Console) -> None:
    """A row per measurement, peers beside ours."""
    table = Table(box=None, pad_edge=False)
    for heading in (
        "task",
        "rows",
        "clusters",
        "seconds",
        "peak MB",
        "distance",
        "rare groups kept",
        "recall",
        "graph",
        "ARI",
    ):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for row in sorted(rows, key=lambda row: (row["n"], list(scale_tasks.TASKS).index(row["task"]), row["k"])):
        clusters = f"{row['k']:,}" if row["task"].startswith(scale_page.OF_CLUSTERS) else ""
        kept = f"{row['rare_kept']} of {scale_tasks.RARE}" if "rare_kept" in row else ""
        table.add_row(
            row["task"], f"{row['n']:,}", clusters, f"{row['seconds']:,.1f}", f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['distance']:.4f}" if "distance" in row else "", kept, f"{row.get('recall', '')}",
            f"{row['graph_images']:,}" if "graph_images" in row else "", f"{row.get('ari', '')}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{measured_on['cpu']}, {measured_on['cores']} cores, load {measured_on['load']}; {measured_on['date']}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory against the number of images.")
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute: to see that it runs")
    parser.add_argument("--sizes", type=lambda text: [int(float(n)) for n in text.split(",")], help="such as 1e5,1e6")
    parser.add_argument("--only", type=lambda text: text.split(","), help=", ".join(scale_tasks.TASKS))
    parser.add_argument("--estimate", action="store_true", help="say how long it would take, and end")
    parser.add_argument("--page", action="store_true", help="write the table of docs/scale.md, measure nothing")
    parser.add_argument("--gpu", type=Path, help="what benchmarks/serving_gpu.py wrote, for the page")
    parser.add_argument("--folder", type=Path, help="where the data lies meanwhile; none: the system's")
    parser.add_argument("--out", type=Path, default=Path("runs/scale.json"), help="the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
