"""A run told: a table for people, a file for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from rich.console import Console
from rich.table import Table

from .ledger import Ledger
from .promises import Promise
from .vitals import Series


def show(ledger: Ledger, promises: Sequence[Promise], again: str) -> None:
    """Print it. again: the command that sends the same."""
    console = Console(width=140)
    callers = Table("callers", "sent", "answered", "by outcome", title="soak")
    for who, sent in sorted(ledger.sent.items()):
        outcomes = ledger.outcomes[who]
        told = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
        callers.add_row(who, f"{sent:,}", f"{outcomes.total():,}", told or f"vanished {ledger.vanished[who]:,}")
    console.print(callers)
    events = Table("done to the servers", "times")
    for event, count in sorted(ledger.events.items()):
        events.add_row(event, f"{count:,}")
    for reason, count in ledger.again.most_common():
        events.add_row(f"images sent again: {reason}", f"{count:,}")
    console.print(events)
    table = Table("promise", "", "found")
    for promise in promises:
        table.add_row(promise.name, "[green]kept" if promise.kept else "[bold red]BROKEN", promise.detail)
    console.print(table)
    for offence in ledger.offences:
        console.print(f"{offence.promise}: {offence.who}: {offence.what}", style="red", markup=False)
    console.print(again, markup=False)


def record(
    path: Path, ledger: Ledger, promises: Sequence[Promise], series: Sequence[Series], run: dict[str, Any]
) -> None:
    """Write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sent = {who: {"sent": sent, **_sorted(ledger.outcomes[who])} for who, sent in sorted(ledger.sent.items())}
    content = {
        "machine": machine.describe(),
        "run": run,
        "callers": sent,
        "sent_again": _sorted(ledger.again),
        "vanished": _sorted(ledger.vanished),
        "events": _sorted(ledger.events),
        "promises": [asdict(promise) for promise in promises],
        "offences": [asdict(offence) for offence in ledger.offences],
        "vitals": {each.replica.name: [asdict(sample) for sample in _thinned(each)] for each in series},
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))


def _thinned(series: Series) -> list[Any]:
    return series.samples[:: max(1, len(series.samples) // 200)]
