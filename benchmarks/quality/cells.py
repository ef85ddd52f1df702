"""One result a file: a method on a problem with a seed. The file's name has the hash of all that it depends on.

    cells/mednist-100-1-p2--frozen--s0.3f9a01c2d4e5.json

A file is written whole or not at all, so a run that was killed goes on with what is missing. Where the hash of a cell
has changed, its older files are kept: they are stale, and only shown where that is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.quality.method import Method
from benchmarks.quality.problems import Ints, Problem

from deepmcat_core.durable import sync_directory, write_synced

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """data: the digest of the images of the problem."""

    problem: Problem
    method: Method
    seed: int
    data: str

    @property
    def name(self) -> str:
        """mednist/100:1/p2 frozen s0."""
        return f"{self.problem.name} {self.method.name} s{self.seed}"

    def hash(self) -> str:
        """SHA-256, shortened, of what the result depends on: data, split, method and settings, sources, seed."""
        parts = {
            "data": self.data,
            "problem": self.problem.digest(),
            "method": self.method.name,
            "settings": dict(self.method.settings),
            "version": self.method.version(),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def path(self, folder: Path) -> Path:
        """The file of the result."""
        return folder / f"{slug(self.name)}.{self.hash()}.json"

    def expected_seconds(self, known: Iterable[Record]) -> float:
        """How long it may take: as long as it did with other seeds or older code, else by the method's guess."""
        mine = self.problem.name, self.method.name
        same = [float(record["wall_s"]) for record in known if (record["problem"], record["method"]) == mine]
        if same:
            return sum(same) / len(same)
        images, seconds = self.method.seconds_at
        return max(1.0, seconds * math.pow(self.problem.fit_images / images, 1.5))


def slug(name: str) -> str:
    """A name that any file system takes; the parts of a cell's name stay apart."""
    return "--".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in _parts(name))


def _parts(name: str) -> list[str]:
    """Problem (which may have spaces), method and seed."""
    return name.rsplit(" ", 2)


def every(
    problems: Sequence[Problem], methods: Sequence[Method], seeds: Sequence[int], data: Callable[[Ints], str]
) -> Iterator[Cell]:
    """All cells, a seed after the other, which an early end leaves whole; left-out classes last in each.

    data: the digest of the images at some rows of the corpus. Other images have no part in a problem's results.
    """
    digests = {problem.name: data(_rows(problem)) for problem in problems}
    for seed in seeds:
        for outliers in (False, True):
            for method in methods:
                for problem in problems:
                    if (problem.left_out is not None) != outliers or (outliers and not method.verdicts):
                        continue
                    if problem.name.startswith(method.only):
                        yield Cell(problem=problem, method=method, seed=seed, data=digests[problem.name])


def _rows(problem: Problem) -> Ints:
    """All rows of the corpus that a problem uses."""
    return np.unique(np.concatenate([part for f in problem.folds for part in (f.fit, f.calibration, f.test)]))


def chosen(cells: Iterable[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose name contains one of `only`, or matches it as a glob; all where there is none."""
    return [c for c in cells if not only or any(part in c.name or fnmatchcase(c.name, part) for part in only)]


def write(path: Path, record: Record) -> None:
    """Put a record in place, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_synced(partial, json.dumps(record, indent=1, allow_nan=False).encode())
    partial.rename(path)
    sync_directory(path.parent)


def read_all(folder: Path) -> list[Record]:
    """Every record there is, current or stale, the oldest first."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda record: str(record["machine"]["date"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """records: of cells that are there, "stale" where the hash is an older one. missing: names of the others."""

    records: list[Record]
    missing: list[str]


def find(cells: Iterable[Cell], folder: Path, *, keep_stale: bool) -> Found:
    """The records of `cells`; an older one in place of a missing one where `keep_stale`."""
    older: dict[str, Record] = {record["cell"]: record for record in read_all(folder)}  # the latest of each stays
    records, missing = [], []
    for cell in cells:
        path = cell.path(folder)
        if path.is_file():
            records.append(json.loads(path.read_text()) | {"stale": False})
        elif keep_stale and cell.name in older:
            records.append(older[cell.name] | {"stale": True})
        else:
            missing.append(cell.name)
    return Found(records=records, missing=missing)
