"""`categorize --out`: a file of JSON lines that is answer and journal at once, so that a run can be taken up again.

A line that is there was answered, whatever became of the process: lines are appended whole, and what a kill has torn is
cut off at the next start. What may pass (a busy server, a file that could not be read) is not written, and so is asked
again.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from deepmcat_client.errors import ClientError, ImageError, InvalidRequest, NotAnImage, UnreadableFile
from deepmcat_client.results import Categorization

SYNCED_EVERY_S = 1.0  # what a power cut can cost; a kill costs nothing that was written


@dataclass(slots=True)
class Answered:
    """What a journal holds. files: as they were named; artifacts: who answered; failed: images that have an error."""

    files: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)
    failed: int = 0


class Journal:
    """The file, for one process at a time; open it with `with`. `answered` is what was there, and grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answered = Answered()
        self._file: BinaryIO | None = None
        self._synced_at = 0.0

    def __enter__(self) -> Journal:
        """Open, lock, read, and cut off a torn end. Raises InvalidRequest for what is no file of answers."""
        if self.path.exists() and not self.path.is_file():
            raise InvalidRequest(f"{self.path} is no regular file, which --out needs; --jsonl writes to stdout")
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InvalidRequest(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            self._lock(self._file)
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Bring everything to the disk and close."""
        assert self._file is not None
        with self._file:
            os.fsync(self._file.fileno())

    def __contains__(self, file: Path) -> bool:
        """Whether a file has its answer."""
        return str(file) in self.answered.files

    def add(self, file: Path, answer: Categorization | ClientError) -> bool:
        """Write an answer, which then survives this process. False: not written, because it may pass."""
        if not is_final(answer):
            return False
        assert self._file is not None
        # One unbuffered write a line; names that are not UTF-8 are escaped as JSON does it.
        row = answer_line(file, answer)
        self._file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode(errors="backslashreplace"))
        self._file.flush()
        self._note(row)
        if time.monotonic() - self._synced_at > SYNCED_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()
        return True

    def _read(self, file: BinaryIO) -> None:
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._note(_parsed(line, f"line {number} of {self.path}"))
        file.truncate(whole)

    def _note(self, row: dict[str, Any]) -> None:
        self.answered.files.add(row["file"])
        if "error" not in row:
            self.answered.artifacts.add(row["artifact_id"])
        elif row["error"]["reason"] != NotAnImage.reason:
            self.answered.failed += 1

    def _lock(self, file: BinaryIO) -> None:
        """Refuse a second writer, where the platform has locks that die with their process."""
        if os.name != "posix":
            return
        fcntl: Any = importlib.import_module("fcntl")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidRequest(
                f"another process is writing to {self.path}; wait for it, or choose another --out"
            ) from error


def pinned_artifact(journal: Journal, artifact_id: str, *, mixed: bool) -> str:
    """The artifact that has to answer from here on; "" for any. artifact_id: of what would answer now.

    One file holds answers of one artifact, unless `mixed`: clusters and distances of two cannot be compared, and
    nothing in a table of both would say so. Raises InvalidRequest.
    """
    if mixed:
        return ""
    others = journal.answered.artifacts - {artifact_id}
    if others:
        raise InvalidRequest(
            f"{journal.path} has answers of artifact {sorted(others)[0][:12]}, and what would answer now is "
            f"{artifact_id[:12]}; choose another --out, or allow both with --mixed-artifacts"
        )
    return artifact_id


def answer_line(file: Path, answer: Categorization | ClientError) -> dict[str, Any]:
    """An answer as a row of JSON lines."""
    if isinstance(answer, ClientError):
        return {"file": str(file), "error": {"reason": answer.reason, "message": str(answer)}}
    fields = asdict(answer)
    del fields["embedding"]
    return {"file": str(file), **fields}


def is_final(answer: Categorization | ClientError) -> bool:
    """Whether asking again would bring the same: an answer, or an error that the image itself has."""
    if isinstance(answer, ClientError):
        return isinstance(answer, ImageError) and not isinstance(answer, UnreadableFile)
    return True


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row["file"], str) and isinstance(
            row["error"]["reason"] if "error" in row else row["artifact_id"], str
        ):
            return dict(row)
    except (ValueError, TypeError, KeyError):
        pass
    raise InvalidRequest(f"{where} is no answer of `deepmcat categorize --out`; choose another --out")
