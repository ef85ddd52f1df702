"""Logs let nothing through that is not on the list."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from deepmcat_core import logs


@pytest.fixture(name="stream")
def stream_fixture() -> Iterator[io.StringIO]:
    """Where the log goes; logging is put back afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("deepmcat")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    logs.configure("debug", stream)
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_only_listed_fields_get_through(stream: io.StringIO) -> None:
    """A field that is not on the list is dropped and counted, whatever it holds."""
    logs.event(logs.logger("test"), logging.INFO, "call", code="OK", duration_s=0.5, patient="CANARY", file="CANARY")

    (line,) = lines(stream)
    assert line["event"] == "call"
    assert (line["code"], line["duration_s"], line["dropped"]) == ("OK", 0.5, 2)
    assert "CANARY" not in stream.getvalue()


def test_exception_text_stays_out(stream: io.StringIO) -> None:
    """A traceback says which exception and where, and never what it said."""
    try:
        raise ValueError("CANARY")
    except ValueError:
        logs.event(logs.logger("test"), logging.ERROR, "failed", exc_info=True)

    (line,) = lines(stream)
    assert line["error_type"] == "ValueError"
    assert "test_logs.py" in str(line["traceback"])
    assert "CANARY" not in stream.getvalue()


def test_other_libraries_are_heard_and_not_quoted(stream: io.StringIO) -> None:
    """A warning of another library shows that there was one, without its text."""
    logging.getLogger("PIL").warning("Invalid value for VR UI: 'CANARY'")

    (line,) = lines(stream)
    assert line["event"] == "message from PIL"
    assert "CANARY" not in stream.getvalue()


async def test_records_have_nothing_that_no_line_shows(stream: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    """Thread, process, task (from Python 3.12 on) and place of a call are not looked up."""
    logs.event(logs.logger("test"), logging.INFO, "call")

    (record,) = caplog.records
    assert (record.thread, record.process, record.processName, record.pathname) == (None, None, None, "(unknown file)")
    assert getattr(record, "taskName", None) is None
