"""docs/benchmarks.md and its plots, from the records. Nothing in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.quality import goals, plots, tables
from benchmarks.quality.cells import Found, Record
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plots import Chart, Line
from benchmarks.quality.problems import Problem
from benchmarks.quality.results import Results, metric

from deepmcat_trainer import recipes

PAGE, PLOTS = "benchmarks.md", "benchmarks"


def write(found: Found, timed: Path, problems: Sequence[Problem], docs: Path, *, quick: bool) -> list[Path]:
    """Write the page and the plots below `docs`; returns what was written."""
    results = Results(found.records)
    folder = docs / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for group in (g for g in results.groups() if g != goals.LEFT_OUT):
        path = folder / f"{group.replace('/', '-').replace(':', '-').replace(' ', '-')}.svg"
        path.write_text(plots.draw(_charts(results, group)), encoding="utf-8")
        drawn[group] = f"{PLOTS}/{path.name}"
    if chart := _cut_chart(results):
        path = folder / "suggested-cut.svg"
        path.write_text(plots.draw([chart]), encoding="utf-8")
        drawn["suggested cut"] = f"{PLOTS}/{path.name}"
    page = docs / PAGE
    page.write_text(_page(results, found, _timed(timed), problems, drawn, quick=quick), encoding="utf-8")
    return [page, *(docs / name for name in drawn.values())]


def summary(found: Found) -> str:
    """A short table for the terminal: k = C on whole problems, and how much is missing."""
    results = Results(found.records)
    lines = [f"{'problem':24}{'method':12}{'purity':>16}{'mapped worst':>16}{'ARI':>16}{'s':>8}"]
    for group in results.groups():
        for method in METHODS:
            purity = results.summary(group, method.name, metric("1 C", "purity"))
            if purity is None:
                continue
            others = (results.summary(group, method.name, metric("1 C", n)) for n in ("mapped_worst_recall", "ari"))
            texts = "".join(f"{s.text() if s else '–':>16}" for s in (purity, *others))
            seconds = float(np.mean([r["total_s"] for r in results.of(group, method.name)]))
            lines.append(f"{group:24}{method.name:12}{texts}{seconds:8.0f}")
    stale = sum(r["stale"] for r in found.records)
    return "\n".join([*lines, f"{len(found.records)} cells ({stale} stale), {len(found.missing)} missing"])


def _page(
    results: Results, found: Found, timed: Record | None, problems: Sequence[Problem], drawn: dict[str, str],
    *, quick: bool,
) -> str:  # fmt: skip
    ours = recipes.default().name
    sections = [
        "# Quality, measured",
        tables.INTRODUCTION,
        tables.provenance(found, quick=quick),
        f"## Targets\n\nThe default recipe, `{ours}`, beside what it is meant to reach.\n\n"
        + tables.of_goals(goals.goals(results, ours, timed)),
        "## Methods\n\n" + tables.of_methods(results),
    ]
    sections += [
        f"## {group}\n\n![{group}]({drawn[group]})\n\n{tables.of_group(results, group)}"
        for group in results.groups()
        if group != goals.LEFT_OUT
    ]
    sections.append("## Groups named until labels are good\n\n" + tables.of_clicks(results))
    cut = f"![suggested cut]({drawn['suggested cut']})\n\n" if "suggested cut" in drawn else ""
    sections.append(f"## The suggested cut\n\n{cut}{tables.of_cuts(results)}")
    sections.append("## A class left out\n\n" + tables.of_outliers(results))
    sections.append("## Differences that hold\n\n" + tables.of_differences(results, ours))
    sections.append("## What was fitted\n\n" + tables.of_problems(problems))
    sections.append("## Missing\n\n" + tables.of_missing(found))
    return "\n\n".join(sections) + "\n"


def _charts(results: Results, group: str) -> list[Chart]:
    """Accuracy and worst recall of labels, by groups named (all of a cut at n), and purity by k."""
    methods = [m.name for m in METHODS if results.of(group, m.name)]
    by_k = [Line(name=m, points=_by_k(results.of(group, m))) for m in methods]
    curves = {m: _curve([r["scores"]["clicks"]["by_cut"] for r in results.of(group, m)]) for m in methods}
    worst = [Line(name=m, points=[(n, w) for n, _, w in curve]) for m, curve in curves.items()]
    accuracy = [Line(name=m, points=[(n, a) for n, a, _ in curve]) for m, curve in curves.items()]
    return [
        Chart(title="purity (own majority)", x="groups", y="purity", lines=by_k, low=0.5),
        Chart(title="label accuracy", x="groups named", y="accuracy", lines=accuracy),
        Chart(title="worst class", x="groups named", y="recall", lines=worst),
    ]


def _by_k(records: Sequence[Record]) -> list[tuple[float, float]]:
    levels = {level for r in records for level in r["scores"]["levels"]} - {"suggested"}
    points: dict[float, list[float]] = {}
    for level in levels:
        cuts = [r["scores"]["levels"][level] for r in records if level in r["scores"]["levels"]]
        points.setdefault(float(np.mean([cut["k"] for cut in cuts])), []).extend(cut["purity"] for cut in cuts)
    return sorted((k, float(np.mean(purities))) for k, purities in points.items())


def _curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float, float]]:
    """Means over records of (n, accuracy, worst recall), at the n that all have."""
    by_n = [{row[0]: row for row in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(rows) for rows in by_n)))
    return [(n, *(float(np.mean([rows[n][i] for rows in by_n])) for i in (1, 2))) for n in shared]  # type: ignore[misc]


def _cut_chart(results: Results) -> Chart | None:
    """The ARI of the suggested cut against that of the best cut, a dot a record."""
    lines = []
    for method in METHODS:
        found: list[dict[str, Any]] = [
            r["scores"]["aris"]
            for r in results.records
            if r["method"] == method.name and "scores" in r and r["scores"]["aris"]
        ]
        gaps = [(aris["suggested_k"], 1 - (aris["best"] - aris["suggested"])) for aris in found]
        if gaps:
            lines.append(Line(name=method.name, points=gaps, marks=True))
    if not lines:
        return None
    return Chart(title="1 − (best ARI − suggested ARI)", x="suggested groups", y="1 is the best cut", lines=lines)


def _timed(path: Path) -> Record | None:
    record: Record | None = json.loads(path.read_text()) if path.is_file() else None
    return record
