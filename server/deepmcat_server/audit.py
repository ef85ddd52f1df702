"""Who did what to this server: one JSON line for each action of an administrator, and for each that was refused.

The only place where a caller is named: who did it is the point. Everything else about callers goes through
caller_ids.py.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from deepmcat_core import logs
from deepmcat_core.errors import ConfigError

LOG = logs.logger("audit")

Outcome = Literal["done", "refused", "failed"]


def record(
    action: str,
    caller: str,
    outcome: Outcome,
    *,
    artifact_name: str | None = None,
    artifact_version: str | None = None,
    artifact_id: str | None = None,
    previous_artifact_id: str | None = None,
    catalog_version: int | None = None,
    reason: str | None = None,
) -> None:
    """Write that `caller` asked for `action`, and what came of it. Raises OSError where the line cannot be written.

    action: the method's name. caller: its key, `interceptors.CALL.get().caller`. artifact_name: that it is served
    under. reason: one of our reasons, for what was refused or failed. The fields are these and no other.
    """
    fields = {
        "artifact_name": artifact_name,
        "artifact_version": artifact_version,
        "artifact_id": artifact_id,
        "previous_artifact_id": previous_artifact_id,
        "catalog_version": catalog_version,
        "reason": reason,
    }
    line = {"action": action, "caller": caller, "outcome": outcome} | {k: v for k, v in fields.items() if v is not None}
    LOG.info("audit", extra={"audit": line})


class _Formatter(logs.JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line: that of every log, and what was audited."""
        line: dict[str, Any] = json.loads(super().format(record))
        return json.dumps(line | getattr(record, "audit", {}), ensure_ascii=True)


class _File(logging.Handler):
    """Appends whole lines to a file that only its owner reads. Opened for each, so it may be rotated at any time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        os.close(self._opened())  # what cannot be opened is found out at the start

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line. Raises OSError: an action that cannot be audited is not to look as if it were."""
        descriptor = self._opened()
        try:
            os.write(descriptor, f"{self.format(record)}\n".encode())
        finally:
            os.close(descriptor)

    def _opened(self) -> int:
        return os.open(self._path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)


@contextmanager
def opened(file: Path | None) -> Iterator[None]:
    """Let `record` write to `file`, or among the log lines on standard error. Raises ConfigError."""
    try:
        handler: logging.Handler = _File(file) if file is not None else logging.StreamHandler(sys.stderr)
    except OSError as error:
        raise ConfigError(f"cannot write the audit_file {file}: {error.strerror}") from error
    handler.setFormatter(_Formatter())
    before = LOG.handlers[:], LOG.level, LOG.propagate
    LOG.handlers[:], LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.handlers[:], LOG.propagate = before[0], before[2]
        LOG.setLevel(before[1])
        handler.close()
