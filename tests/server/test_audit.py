"""The audit log: what is in it, where it goes, and that it fails aloud."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from deepmcat_core.errors import ConfigError
from deepmcat_server import audit


def test_a_line_says_who_did_what(tmp_path: Path) -> None:
    """One JSON line for each action, with the caller by name, appended to what was there, for the owner alone."""
    file = tmp_path / "audit.jsonl"
    for _ in range(2):
        with audit.opened(file):
            audit.record("LoadArtifact", "dns:ops.example\n", "done", artifact_name="default", catalog_version=3)
    lines = [json.loads(line) for line in file.read_text().splitlines()]

    assert len(lines) == 2
    assert lines[0].keys() == {
        "time", "level", "event", "action", "caller", "outcome", "artifact_name", "catalog_version",
    }  # fmt: skip
    assert (lines[0]["event"], lines[0]["caller"]) == ("audit", "dns:ops.example\n")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_rotated_file_is_followed(tmp_path: Path) -> None:
    """After the file was moved away the next line is in a new one."""
    file = tmp_path / "audit.jsonl"
    with audit.opened(file):
        audit.record("A", "jwt:a", "done")
        file.rename(tmp_path / "old")
        audit.record("B", "jwt:a", "failed", reason="ARTIFACT_ERROR")

    assert json.loads(file.read_text())["action"] == "B"


def test_only_the_audit_log_names_callers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines go to the file and to no other handler; without a file they are on standard error, once."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with audit.opened(tmp_path / "audit.jsonl"):
            audit.record("A", "jwt:pacs", "done")
        assert capsys.readouterr().err == ""
        with audit.opened(None):
            audit.record("A", "jwt:pacs", "done")
    finally:
        logging.getLogger().removeHandler(handler)

    assert stream.getvalue() == ""
    assert json.loads(capsys.readouterr().err)["caller"] == "jwt:pacs"


def test_a_line_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """An action that cannot be audited does not look as if it were; a file that cannot be opened stops the start."""
    with pytest.raises(ConfigError, match="audit_file"), audit.opened(tmp_path / "nowhere" / "audit.jsonl"):
        pass
    with audit.opened(Path("/dev/full")), pytest.raises(OSError, match="No space left"):
        audit.record("A", "jwt:a", "done")
