"""The measured part of docs/scale.md: what 10⁶, 10⁷ and 10⁸ images take, from the slopes that scale.py measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pages

from deepmcat_trainer.clustering import MOST_CLUSTERS, MOST_ROWS
from deepmcat_trainer.grouping import FinalSettings

PAGE = pages.DOCS / "scale.md"
TARGETS = (10**6, 10**7, 10**8)
SIDE = 128  # of a prepared image
LACKING = "not measured"
OF_CLUSTERS = ("kmeans", "merge", "group")

Rows = Sequence[dict[str, Any]]


def write(report: dict[str, Any], gpu: Path | None) -> None:
    """Put what follows from the report between the marks of the page. gpu: what serving_gpu.py wrote."""
    pages.fill(PAGE, _measured(report, gpu))


def _measured(report: dict[str, Any], gpu: Path | None) -> str:
    rows, on = report["results"], report["machine"]
    commits = ", ".join(sorted({row.get("commit", "unknown")[:8] for row in rows}))
    head = (
        f"{on['cpu']}, {on['cores']} cores, load {on['load']} at the last start; {on['date'][:10]}, commits {commits}."
    )
    return "\n\n".join([head, _cells(rows), _targets(rows, report["dim"], gpu)])


def _cells(rows: Rows) -> str:
    """Every measurement."""
    lines = [
        "| task | rows | clusters | seconds | peak memory | distance | rare groups kept | recall | images in the graph "
        "| ARI |",
        "|---" * 10 + "|",
    ]
    for row in sorted(rows, key=lambda row: (row["task"], row["n"], row["k"])):
        clusters = f"{row['k']:,}" if row["task"].startswith(OF_CLUSTERS) else ""
        peak = f"{row['peak_bytes'] / 2**20:,.0f} MB"
        graph = f"{row['graph_images']:,}" if "graph_images" in row else ""
        lines.append(
            f"| {row['task']} | {row['n']:,} | {clusters} | {row['seconds']:,.1f} | {peak} "
            f"| {row.get('distance', '')} | {row.get('rare_kept', '')} | {row.get('recall', '')} "
            f"| {graph} | {row.get('ari', '')} |"
        )
    return "\n".join(lines)


def _targets(rows: Rows, dim: int, gpu: Path | None) -> str:
    """A line per step, a column per number of images."""
    steps = {
        "prepare": [_at_rate(rows, "prepare", n) for n in TARGETS],
        "encode": [_at_rate(rows, "encode", n) for n in TARGETS],
        "principal components": [_straight(_of(rows, "pca"), n) for n in TARGETS],
        "k-means": [_straight(_of(rows, "kmeans", above=MOST_ROWS), n) for n in TARGETS],
        "graph, of each view": [_longest(_of(rows, "graph", above=FinalSettings().graph_images)) for _ in TARGETS],
        "walk and merge": [_largest(_of(rows, "merge")) for _ in TARGETS],
    }
    lines = [f"| on this machine | {' | '.join(f'{n:,} images' for n in TARGETS)} |", "|---" * 4 + "|"]
    lines += [f"| {step} | {' | '.join(_hours(s) for s in seconds)} |" for step, seconds in steps.items()]
    if gpu is not None:
        rate = _encoder_rate(gpu)
        lines.append(f"| encode, on a GPU at {rate:,.0f} images/s | {' | '.join(_hours(n / rate) for n in TARGETS)} |")
    shared = [_sum(steps["prepare"][i], steps["encode"][i]) for i in range(len(TARGETS))]
    lines.append(f"| machines that prepare and encode in a day | {' | '.join(_machines(s) for s in shared)} |")
    lines.append(f"| prepared images, {SIDE} px | {' | '.join(_size(n * SIDE**2) for n in TARGETS)} |")
    lines.append(f"| embeddings, {dim} dimensions | {' | '.join(_size(n * dim * 4) for n in TARGETS)} |")
    return "\n".join(lines)


def _of(rows: Rows, task: str, above: int = 0) -> list[dict[str, Any]]:
    found = [row for row in rows if row["task"] == task and row["n"] > above]
    return sorted(found, key=lambda row: (row["n"], row["k"]))


def _at_rate(rows: Rows, task: str, n: int) -> float | None:
    found = _of(rows, task)
    return n * found[-1]["seconds"] / found[-1]["n"] if found else None


def _straight(found: Rows, n: int) -> float | None:
    """Along the line through the two largest sizes."""
    if len(found) < 2:
        return None
    (n1, s1), (n2, s2) = ((row["n"], row["seconds"]) for row in found[-2:])
    return s2 + (s2 - s1) / (n2 - n1) * (n - n2)


def _longest(found: Rows) -> float | None:
    return max((row["seconds"] for row in found), default=None)


def _largest(found: Rows) -> float | None:
    return found[-1]["seconds"] if found and found[-1]["k"] == MOST_CLUSTERS else None


def _sum(*seconds: float | None) -> float | None:
    return None if any(s is None for s in seconds) else sum(s for s in seconds if s is not None)


def _encoder_rate(file: Path) -> float:
    results = json.loads(file.read_text())["results"]
    exact = [row for row in results if row["what"] == "encode" and row.get("precision", "float32") == "float32"]
    return max(row["images_per_s"] for row in exact)


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return LACKING
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _machines(seconds: float | None) -> str:
    return LACKING if seconds is None else f"{math.ceil(seconds / 86_400):,}"


def _size(count: int) -> str:
    return f"{count / 1e12:,.1f} TB" if count >= 1e12 else f"{count / 1e9:,.1f} GB"
