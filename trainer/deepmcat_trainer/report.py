"""What a run of `prepare` found: report.jsonl for what could not be read, and a short summary for the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepmcat_core.calibration import MIN_VERDICT
from deepmcat_trainer.dataset import REPORT, Info
from deepmcat_trainer.identity import private_file
from deepmcat_trainer.journal import Journal
from deepmcat_trainer.splits import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run made of its sources.

    read: images that this run decoded, `resumed` those that an interrupted one had. unmatched_labels: lines of the
    labels file that name no image here.
    """

    path: Path
    info: Info
    read: int
    resumed: int
    seconds: float
    labelled_rows: int
    unmatched_labels: int

    def lines(self) -> Iterator[str]:
        """The summary for a person."""
        info = self.info
        yield f"{self.path}: {info.rows:,} rows of {info.images:,} images"
        yield f"  duplicates left out  {info.duplicates:,}"
        yield f"  not images           {info.not_images:,}"
        failures = ", ".join(f"{reason} {count:,}" for reason, count in info.failures.items())
        yield f"  failures             {sum(info.failures.values()):,}{f' ({failures})' if failures else ''}"
        yield f"  patients             {info.patients:,}{'' if info.patients else ' (no header names one)'}"
        yield f"  splits               {', '.join(f'{split} {count:,}' for split, count in info.splits.items())}"
        if info.labelled:
            unmatched = f"; {self.unmatched_labels:,} label lines name no image" if self.unmatched_labels else ""
            yield f"  labelled rows        {self.labelled_rows:,}{unmatched}"
        resumed = f", {self.resumed:,} before an interruption" if self.resumed else ""
        rate = self.read / max(self.seconds, 1e-9)
        yield f"  read                 {self.read:,} in {self.seconds:,.1f} s ({rate:,.0f}/s){resumed}"
        if info.failures or info.not_images:
            yield f"  report               {self.path / REPORT}"
        yield from self._warnings()

    def _warnings(self) -> Iterator[str]:
        empty = [s for s in Split if self.info.shares.of(s) and not self.info.splits[s]]
        if empty:
            who = f"{self.info.patients:,} patients" if self.info.patients else f"{self.info.images:,} images"
            yield (
                f"  warning: the split {' and '.join(empty)} is empty, because {who} are few to divide "
                f"{self.info.shares}; choose another --split or add images"
            )
        held_out = self.info.splits[Split.CALIBRATION]
        if 0 < held_out < MIN_VERDICT:
            yield (
                f"  note: {held_out} calibration images; outlier verdicts need at least {MIN_VERDICT}: add images, or "
                "choose another --split"
            )


def write_report(journal: Journal, path: Path) -> None:
    """Write one line per image that could not be read: id, locator, reason. The file is private to its owner."""
    with private_file(path) as file:
        for line in journal.stream("SELECT id, absolute, reason FROM images WHERE reason IS NOT NULL ORDER BY seq"):
            entry = {"id": line["id"], "path": line["absolute"], "reason": line["reason"]}
            file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def failures(journal: Journal) -> dict[str, int]:
    """Files that gave no image by reason, NOT_AN_IMAGE among them."""
    query = "SELECT reason, COUNT(*) FROM images WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
    return {str(reason): int(count) for reason, count in journal.stream(query)}
