"""Logs as JSON lines with a closed set of fields, so that nothing a caller sent can get into them.

Any field that is not in FIELDS is dropped and counted in `dropped`: default-deny is the only rule that holds when
somebody adds a log line in a hurry. Values are numbers, booleans or short words of our own.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

FIELDS = frozenset(
    {
        "address", "artifact_id", "artifact_name", "artifact_version", "batch_size", "call_id", "caller_id",
        "catalog_version", "code", "count", "device", "duration_s", "engine", "error_type", "front", "images", "method",
        "precision", "previous_artifact_id", "queue_depth", "reason", "signal", "size_bytes", "stage", "trace_id",
        "version", "workers",
    }
)  # fmt: skip

_NAME = "deepmcat"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and the fields that are allowed. always: of every line."""

    def __init__(self, **always: object) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line. A traceback gives file, line and function of our frames, and never the exception's text."""
        fields: dict[str, Any] = self._always | getattr(record, "fields", {})
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.name.startswith(_NAME) else f"message from {record.name}",
        }
        line |= {key: value for key, value in fields.items() if key in FIELDS}
        if dropped := len(fields.keys() - FIELDS):
            line["dropped"] = dropped
        if record.exc_info and record.exc_info[0] is not None:
            line["error_type"] = record.exc_info[0].__name__
            line["traceback"] = _where(record.exc_info[2])
        return json.dumps(line, ensure_ascii=True)


def configure(level: str = "info", stream: TextIO | None = None, **always: object) -> None:
    """Send everything, other libraries' messages included (without their text), to `stream` as JSON lines.

    always: fields of every line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(**always))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_NAME).setLevel(level.upper())
    _know_less()


def _know_less() -> None:
    """Have records made without what no line of ours shows, which takes longer than the line (Logging HOWTO)."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    logging._srcfile = None  # the documented way to leave out where a call is


def logger(part: str) -> logging.Logger:
    """The logger of a part of the system."""
    return logging.getLogger(f"{_NAME}.{part}")


def event(log: logging.Logger, level: int, name: str, *, exc_info: bool = False, **fields: object) -> None:
    """Write one event. `name` is a constant of ours; whatever varies goes into fields."""
    log.log(level, name, extra={"fields": fields}, exc_info=exc_info)


def _where(traceback: Any) -> list[str]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno}:{code.co_name}")
        traceback = traceback.tb_next
    return frames
