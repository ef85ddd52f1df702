"""What a person waits for: `deepmcat prepare` and `deepmcat train` with no recipe named, on all of MedNIST."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.quality import sources
from benchmarks.quality.cells import Record, write
from benchmarks.quality.corpus import KEY, SIZE

NAME = "commands/mednist default s0"


def current(folder: Path) -> Path:
    """The file of the record by the code as it is."""
    return folder / f"commands.{sources.digest(sources.TRAINING)[:12]}.json"


def measure(archive: Path, folder: Path) -> Record:
    """Run the two commands, write the record into `folder` and return it. Raises SystemExit where one fails."""
    measured_on = machine.describe()
    with tempfile.TemporaryDirectory(prefix="commands-") as name:
        work = Path(name)
        (work / "key").write_bytes(KEY)
        prepared = _deepmcat(
            "prepare", archive, "--out", work / "dataset", "--labels", "folders", "--size", SIZE, "--key", work / "key"
        )
        trained = _deepmcat("train", work / "dataset", "--out", work / "artifact")
    record = {
        "cell": NAME,
        "machine": measured_on,
        "seconds": {"prepare": prepared[0], "train": trained[0]},
        "peak_mb": {"prepare": prepared[1], "train": trained[1]},
    }
    write(current(folder), record)
    return record


def _deepmcat(*arguments: object) -> tuple[float, int]:
    """Run a command as a person would: its seconds, start-up included, and the peak MB of its largest process."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "deepmcat_client", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(code)
    return round(time.monotonic() - start, 1), usage.ru_maxrss // 1024
