"""The coverage-guided half of `make fuzz`: a process of fuzz_decode.py, started again when a codec has ended it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .inspection import ROOT

_PROGRESS = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
_GRACE_S = 60  # after the last second: importing what is instrumented, and the file in hand
_MAX_STARTS = 20


class GuidedRun:
    """A context manager: the process runs within. Where atheris is not installed, nothing does.

    failures: how often the process ended early and left no file that would explain it; its log does.
    """

    def __init__(self, folder: Path, seconds: int, seed: int) -> None:
        self._folder = folder
        self._deadline = time.monotonic() + seconds
        self._seed = seed
        self._log = folder / "atheris.log"
        self._starts = 0
        self.failures = 0
        self._installed = importlib.util.find_spec("atheris") is not None
        self._crashes: set[Path] = set()
        self._thread = threading.Thread(target=self._keep_running)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start."""
        for old in (self._folder / "findings").glob("*"):
            old.unlink()
        self._log.unlink(missing_ok=True)
        if self._installed:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self._deadline = 0.0
        if self._process is not None:
            self._process.kill()
        if self._installed:
            self._thread.join()

    def wait(self) -> list[bytes]:
        """Wait for the end, and return the files that broke a promise, ended the process or took long."""
        if self._installed:
            self._thread.join()
        return [path.read_bytes() for path in sorted((self._folder / "findings").glob("*"))]

    def summary(self) -> str:
        """How much was tried, how coverage grew, and how often the process was ended."""
        if not self._installed:
            return "atheris: not installed; `pip install --group fuzz` brings it"
        steps = _PROGRESS.findall(self._log.read_text(errors="replace"))
        if not steps:
            return f"atheris: did not start; {self._log} says why"
        first = next((step for step in steps if step[1] == "INITED"), steps[0])
        last = steps[-1]
        runs = sum(int(a[0]) for a, b in zip(steps, [*steps[1:], ("0",)], strict=True) if int(b[0]) < int(a[0]))
        return (
            f"atheris: {runs} files, {self._starts} starts; places reached {first[2]} to {last[2]}, "
            f"features {first[3]} to {last[3]}, files kept {first[4]} to {last[4]}"
        )

    def _new_crashes(self) -> set[Path]:
        """What libFuzzer has left of crashes and time-outs since it was last asked."""
        left = {path for kind in ("crash", "timeout", "oom") for path in (self._folder / "findings").glob(f"{kind}-*")}
        new, self._crashes = left - self._crashes, left
        return new

    def _keep_running(self) -> None:
        while (left := int(self._deadline - time.monotonic())) > 0 and self._starts < _MAX_STARTS:
            self._starts += 1
            flags = [f"-max_total_time={left}", f"-seed={(self._seed + self._starts) % 2**31}"]
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.fuzz.fuzz_decode",
                str(self._folder.absolute()),
                *flags,
            ]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
                try:
                    if self._process.wait(left + _GRACE_S) == 0:
                        return
                    self.failures += not any(self._new_crashes())
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
