"""What calls came to: how many were answered in time, how long they took. Arithmetic alone.

A call's times are by the system's monotonic clock, and it begins when it was due, not when a client that is late
sent it: so a client that cannot keep up makes no server look better.
"""

from __future__ import annotations

import math
import statistics
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

OK = "OK"
ENTRY = struct.Struct("<dI")  # as peers/work.py writes it


class Call(NamedTuple):
    """due: when it was to begin. seconds: until its end. code: its status."""

    due: float
    seconds: float
    code: str


class Spread(NamedTuple):
    """Of several rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def within(calls: Sequence[Call], begin: float, end: float) -> list[Call]:
    """Those that were due then."""
    return [call for call in calls if begin <= call.due < end]


def good(calls: Sequence[Call], deadline_s: float = math.inf) -> int:
    """How many were answered in time."""
    return sum(call.code == OK and call.seconds <= deadline_s for call in calls)


def failed(calls: Sequence[Call]) -> int:
    return sum(call.code != OK for call in calls)


def codes(calls: Sequence[Call]) -> dict[str, int]:
    return dict(Counter(call.code for call in calls).most_common())


def percentile(calls: Sequence[Call], share: float) -> float:
    """Of the seconds of the answered ones: the smallest that at least `share` of them do not exceed; NaN of none."""
    seconds = sorted(call.seconds for call in calls if call.code == OK)
    return seconds[max(0, math.ceil(share * len(seconds)) - 1)] if seconds else math.nan


def answered_per_s(calls: Sequence[Call], begin: float, end: float) -> float:
    """By when the answers came: for a closed loop, where it does not matter when a call was due."""
    return sum(call.code == OK and begin <= call.due + call.seconds < end for call in calls) / (end - begin)


def executed(log: Path, begin: float = -math.inf, end: float = math.inf) -> int:
    """The images that an encoder has run, by the log that it writes."""
    if not log.exists():
        return 0
    content = log.read_bytes()
    entries = ENTRY.iter_unpack(content[: len(content) // ENTRY.size * ENTRY.size])
    return sum(count for when, count in entries if begin <= when < end)


def calls_of(rows: Sequence[Sequence[Any]]) -> list[Call]:
    """From JSON."""
    return [Call(*row) for row in rows]


def samples(scraped: str) -> dict[str, float]:
    """Prometheus's text by name and labels."""
    found = {}
    for line in scraped.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def total(found: dict[str, float], name: str, *parts: str) -> float:
    """The sum over a metric's series that have all these parts in their labels."""
    return sum(
        value
        for key, value in found.items()
        if key.partition("{")[0] == name and all(part in key.partition("{")[2] for part in parts)
    )


def ratios(saturated: dict[str, Any]) -> dict[str, Any]:
    """Ours over each of the others, round by round: what disturbs one round disturbs both."""
    own = [each["per_s"] for each in saturated["ours"]["rounds"]]
    return {
        name: spread([a / max(b["per_s"], 1e-9) for a, b in zip(own, of["rounds"], strict=True)])._asdict()
        for name, of in saturated.items()
        if name != "ours"
    }
