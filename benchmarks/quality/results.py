"""Records as tables need them: the values of a metric over seeds, permutations averaged within a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.quality.cells import Record
from benchmarks.quality.statistics import Summary

Read = Callable[[Record], float | None]


def group_of(problem: str) -> str:
    """mednist/100:1/p2 belongs to mednist/100:1, and mednist/without Hand to mednist/left out."""
    first, _, rest = problem.partition("/")
    if rest.startswith("without "):
        return f"{first}/left out"
    return f"{first}/{rest.partition('/')[0]}"


def metric(level: str, name: str) -> Read:
    """Reads a score at a level ("1 C", "suggested", "fine"); None where the method has no such cut."""

    def read(record: Record) -> float | None:
        found = record["scores"]["levels"].get(level) if "scores" in record else None
        return None if found is None else float(found[name])

    return read


def at(*path: str) -> Read:
    """Reads a number by its path in a record; None where there is none."""

    def read(record: Record) -> float | None:
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else float(value)

    return read


@dataclass(frozen=True, slots=True)
class Results:
    """All records that are shown."""

    records: list[Record]

    def of(self, group: str, method: str) -> list[Record]:
        """The records of a method on a group of problems."""
        return [r for r in self.records if group_of(r["problem"]) == group and r["method"] == method]

    def groups(self) -> list[str]:
        """The groups of problems that have records, in the order they were found."""
        return list(dict.fromkeys(group_of(r["problem"]) for r in self.records))

    def by_seed(self, group: str, method: str, read: Read) -> list[float]:
        """A value per seed, the mean over the group's problems; empty where a value is missing."""
        return _by_seed(self.of(group, method), read)

    def by_problem(self, group: str, method: str, read: Read) -> dict[str, list[float]]:
        """For each problem of a group its values, one a seed; without those that lack one."""
        records = self.of(group, method)
        names = dict.fromkeys(r["problem"] for r in records)
        found = {name: _by_seed([r for r in records if r["problem"] == name], read) for name in names}
        return {name: values for name, values in found.items() if values}

    def summary(self, group: str, method: str, read: Read) -> Summary | None:
        """Mean and spread over seeds; None where a value is missing."""
        values = self.by_seed(group, method, read)
        return Summary.of(values) if values else None


def _by_seed(records: Iterable[Record], read: Read) -> list[float]:
    values: dict[int, list[float]] = {}
    for record in records:
        value = read(record)
        if value is None:
            return []
        values.setdefault(record["seed"], []).append(value)
    return [float(np.mean(values[seed])) for seed in sorted(values)]
