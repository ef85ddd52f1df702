"""What a run of `prepare` found: report.jsonl for what could not be read, and a short summary for the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepmcat_core.calibration import MIN_VERDICT
from deepmcat_trainer.dataset import REPORT, Info
from deepmcat_trainer.identity import private_file
from deepmcat_trainer.journal import Journal
from deepmcat_trainer.locations import CorruptArchive, Unreadable
from deepmcat_trainer.sources import TAKEN, Source
from deepmcat_trainer.splits import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run made of its sources.

    read: files that this run decoded, `resumed` those that an interrupted one had. unmatched_labels: lines of the
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
        yield (
            f"{self.path}: {info.rows + info.duplicates:,} frames of {info.images:,} images: {info.rows:,} kept, "
            f"{info.duplicates:,} duplicates left out"
        )
        yield f"  splits, in frames    {', '.join(f'{split} {count:,}' for split, count in info.splits.items())}"
        yield f"  patients             {info.patients:,}{'' if info.patients else ' (no header names one)'}"
        yield f"  files, not images    {info.not_images:,}"
        failures = f" ({_counted(info.failures)})" if info.failures else ""
        yield f"  files, failed        {sum(info.failures.values()):,}{failures}"
        if info.labelled:
            unmatched = f"; {self.unmatched_labels:,} label lines name no image" if self.unmatched_labels else ""
            yield f"  labelled frames      {self.labelled_rows:,}{unmatched}"
        resumed = f", {self.resumed:,} before an interruption" if self.resumed else ""
        rate = self.read / max(self.seconds, 1e-9)
        yield f"  files read           {self.read:,} in {self.seconds:,.1f} s ({rate:,.0f}/s){resumed}"
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
                f"  note: {held_out} calibration frames; outlier verdicts need at least {MIN_VERDICT}: add images, or "
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


def nothing(by_reason: Mapping[str, int], sources: Sequence[Source], names: Sequence[str]) -> str:
    """What to say where `sources`, as a person named them, gave no image at all: why, and the way out."""
    where, files = ", ".join(names), sum(by_reason.values())
    if not by_reason:
        return f"there is no file in {where} (hidden ones are left out); {TAKEN}"
    if by_reason.keys() == {CorruptArchive.reason}:
        what = "a damaged archive" if files == 1 else f"{files:,} damaged archives"
        head = f"no image can be read from {where}: {what}"
    elif by_reason.keys() == {Unreadable.reason}:
        what = "a file that is" if files == 1 else f"{files:,} files that are"
        head = f"no image can be read from {where}: {what} missing, not permitted or encrypted"
    else:
        head = f"none of the {files:,} files of {where} is an image that can be decoded"
    return f"{head} ({_counted(by_reason)}); {'; '.join(_ways_out(by_reason, sources))}"


def _ways_out(by_reason: Mapping[str, int], sources: Sequence[Source]) -> Iterator[str]:
    if Unreadable.reason in by_reason:
        relative = " and paths, which are absolute or relative to the list" if any(s.is_list for s in sources) else ""
        yield f"check permissions{relative}; what is encrypted has to be decrypted first"
    if CorruptArchive.reason in by_reason:
        yield "copy or pack damaged archives anew, or unpack what can be saved and give that folder"
    if by_reason.keys() - {Unreadable.reason, CorruptArchive.reason}:
        yield "DICOM, PNG, JPEG and TIFF are read"


def _counted(by_reason: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in by_reason.items())
