"""The golden table: a row for each file, and how an answer differs from it.

Lossless pixels are compared by a digest of all of them. Lossy ones by their thumbnails, within TOLERANCE grey levels a
pixel: means of 256 pixels, in which differences between decoders average out. Not a digest of something coarse: values
at the edge of a bin would flip it, however coarse the bins.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.conformance.answers import COLUMNS

OUTCOME = ("status", "reason", "message")

PATH = Path(__file__).parent / "golden.csv"
TOLERANCE = 2

Rows = Mapping[str, Mapping[str, str]]


class Difference(NamedTuple):
    """What changed of a file. column: "" where the file itself is new or gone."""

    file: str
    column: str
    before: str
    after: str

    def __str__(self) -> str:
        """File, column, before and after."""
        where = f"{self.file}: {self.column}" if self.column else self.file
        return f"{where}: {self.before or '(nothing)'} → {self.after or '(nothing)'}"


def read(path: Path = PATH) -> dict[str, dict[str, str]]:
    """The rows by file; none where there is no table yet."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row.pop("file"): row for row in csv.DictReader(file)}


def write(rows: Rows, path: Path = PATH) -> None:
    """Write the rows, sorted by file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("file", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"file": name, **rows[name]} for name in sorted(rows))


def differences(before: Rows, after: Rows) -> list[Difference]:
    """What is not as recorded, by file and column."""
    found = [Difference(name, "", "recorded", "") for name in sorted(before.keys() - after.keys())]
    for name in sorted(after):
        if name in before:
            found += [Difference(name, *change) for change in _changes(before[name], after[name])]
        else:
            found.append(Difference(name, "", "", after[name]["reason"] or after[name]["status"]))
    return found


def updated(before: Rows, after: Rows) -> dict[str, Mapping[str, str]]:
    """The rows to record: the new ones, but those as they are that differ by less than counts."""
    return {
        name: before[name] if not differences(_only(before, name), {name: row}) else row for name, row in after.items()
    }


def _only(rows: Rows, name: str) -> Rows:
    return {name: rows[name]} if name in rows else {}


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str, str]]:
    columns = COLUMNS[:-1] if before["status"] == after["status"] else OUTCOME  # the rest comes and goes with it
    changes = [(column, before[column], after[column]) for column in columns if before[column] != after[column]]
    if columns == OUTCOME:
        return changes
    if before["thumbnail"] == after["thumbnail"] or (before["digest"] and before["digest"] == after["digest"]):
        return changes
    apart = _apart(before["thumbnail"], after["thumbnail"])
    if apart is None:
        return [*changes, ("thumbnail", before["thumbnail"], after["thumbnail"])]
    if apart > TOLERANCE or any(column == "digest" for column, _, _ in changes):
        changes.append(("thumbnail", "as recorded", f"up to {apart} grey levels off"))
    return changes


def _apart(before: str, after: str) -> int | None:
    """By how many grey levels two thumbnails differ at most; None where they cannot be compared."""
    ours, theirs = bytes.fromhex(before), bytes.fromhex(after)
    if not ours or len(ours) != len(theirs):
        return None
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
