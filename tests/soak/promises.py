"""What has to hold at the end of a run, in one line each, with the numbers that say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .ledger import Ledger
from .vitals import SHARED_MEMORY, Series, theil_sen

MIB = 2**20
LONG_S = 900  # from here on memory has a slope worth the name
SLOPE = 0.02  # of its memory a server may grow by in ten minutes of a long run, without its first quarter: some MiB
# less or more are there at each rest, which in half an hour is a slope of 1 % by chance
GROSS = 0.15  # … in a short one, in which it is still finding its size
WORK_GROWTH = 1.3  # the last quarter beside the second: images and workers come and go, and malloc keeps what it keeps
DESCRIPTORS, THREADS = 16, 6  # more in the last quarter than in the second: callers come and go
IDLE_DESCRIPTORS = 8  # more at rest than before the first call


OFFENCES = {
    "wrong answer": "every answer is what the library says",
    "lost image": "no image is lost",
    "order": "answers come in order, each with its id",
    "health": "health and readiness are never red",
    "metrics": "counters never go back",
    "internal error": "no internal error",
    "drain": "a server that is told to end ends with 0",
    "changes": "artifacts come into force, damaged ones do not",
    "hang": "nothing hangs",
}
"""What may be broken while it runs, and the promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One of them."""

    name: str
    kept: bool
    detail: str


def of_books(ledger: Ledger) -> Iterator[Promise]:
    """What callers and watchers found."""
    for offence, name in OFFENCES.items():
        yield Promise(name=name, kept=not ledger.broken[offence], detail=f"{ledger.broken[offence]} times not")
    left = ledger.unanswered
    yield Promise(name="every image is accounted for", kept=not left, detail=str(left or "all"))


def of_memory(series: Series) -> Iterator[Promise]:
    """The steady server's memory, at rest and while it works, and that of its workers."""
    rests = series.at_rest[len(series.at_rest) // 4 :]
    span_s = max(rests[-1].at_s - rests[0].at_s, 1.0)
    slope = theil_sen([v.at_s for v in rests], [v.rss_bytes for v in rests]) / rests[-1].rss_bytes
    if span_s >= LONG_S:
        grown, allowed, over = 600 * slope, SLOPE, "in ten minutes"
    else:
        grown, allowed, over = span_s * slope, GROSS, f"in {span_s:.0f} s"
    told = " ".join(f"{v.rss_bytes / MIB:.1f}" for v in series.at_rest)
    detail = f"{told} MiB, {100 * grown:+.2f} % {over} (at most {100 * allowed:g} %)"
    yield Promise(name="server memory, at rest", kept=grown <= allowed, detail=detail)
    for name, value in (("server memory, at work", "rss_bytes"), ("worker memory, at work", "workers_rss_bytes")):
        before, after = series.middle(value, 0.25, 0.5), series.middle(value, 0.75, 1)
        detail = f"{before / MIB:.1f} → {after / MIB:.1f} MiB (at most × {WORK_GROWTH})"
        yield Promise(name=name, kept=after <= WORK_GROWTH * before, detail=detail)


def of_leftovers(series: Series) -> Iterator[Promise]:
    """What the steady server holds while it runs."""
    for name, allowed in (
        ("descriptors", DESCRIPTORS),
        ("threads", THREADS),
        ("children", 1),
        ("shared", 4),
        ("temporary", 4),
    ):
        before, after = series.middle(name, 0.25, 0.5), series.middle(name, 0.75, 1)
        yield Promise(name=f"{name}, no growth", kept=after <= before + allowed, detail=f"{before:g} → {after:g}")


def of_rest(name: str, left: dict[str, float], descriptors: tuple[int, int]) -> Iterator[Promise]:
    """A server that nobody calls any more. left: gauges that are not 0. descriptors: before the first call, and now."""
    yield Promise(name=f"{name}: nothing inside at rest", kept=not left, detail=str(left or 0))
    before, now = descriptors
    yield Promise(
        name=f"{name}: descriptors at rest", kept=now <= before + IDLE_DESCRIPTORS, detail=f"{before} → {now}"
    )


def of_end(series: Series, code: int) -> Iterator[Promise]:
    """A server that has ended."""
    name = series.replica.name
    yield Promise(name=f"{name}: exit code", kept=code == 0, detail=str(code))
    orphans = [process for process in series.processes if process.is_alive]
    yield Promise(name=f"{name}: no process left", kept=not orphans, detail=str(len(orphans)))
    shared = [file for file in series.shared if (SHARED_MEMORY / file).exists()]
    yield Promise(name=f"{name}: no shared memory left", kept=not shared, detail=str(len(shared)))
    files = [path for path in series.replica.temporary.rglob("*") if path.is_file()]
    yield Promise(name=f"{name}: no temporary file left", kept=not files, detail=str(len(files)))
