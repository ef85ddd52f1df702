"""The plan: what is measured, in which order, and about how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serving import beside, dicom, draining, latency, overload, own_work, replacing, starting, streamed
from benchmarks.serving.measuring import Bench, Found


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question. minutes: of two quiet cores."""

    name: str
    title: str
    measure: Callable[[Bench], Found]
    minutes: float


ROWS = (
    Row(name="overload", title="overload", measure=overload.measure, minutes=7),
    Row(name="drain", title="SIGTERM under load, and a rolling restart", measure=draining.measure, minutes=2),
    Row(name="streamed", title="streamed planes", measure=streamed.measure, minutes=3),
    Row(name="plain", title="beside a plain asyncio servicer", measure=beside.plain, minutes=4),
    Row(name="tritonclient", title="through tritonclient", measure=beside.through_tritonclient, minutes=3),
    Row(name="dicom", title="DICOM files of 512² from end to end", measure=dicom.measure, minutes=3),
    Row(name="latency", title="one caller", measure=latency.measure, minutes=2),
    Row(name="replace", title="replacing the artifact", measure=replacing.measure, minutes=4),
    Row(name="own", title="the server's own work", measure=own_work.measure, minutes=3),
    Row(name="start", title="start and memory", measure=starting.measure, minutes=3),
)


def plan(only: Sequence[str] | None, done: Collection[str]) -> list[Row]:
    """What to measure: the rows asked for, or all, without those that are done. Raises SystemExit for a wrong name."""
    names = [row.name for row in ROWS]
    if wrong := set(only or ()) - set(names):
        raise SystemExit(f"--only has {', '.join(sorted(wrong))}; there are {', '.join(names)}")
    return [row for row in ROWS if row.name not in done and (not only or row.name in only)]


def done(report: dict[str, Any], basis: dict[str, Any]) -> set[str]:
    """The rows that were measured on the same basis: sources, versions, machine, and as long."""
    return {name for name, row in report.get("rows", {}).items() if row["basis"] == basis}
