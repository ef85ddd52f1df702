"""The soak itself, with servers that have a defect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a machine that is busy with something else takes its time
def test_a_server_that_answers_wrongly_now_and_then_is_found_out(tmp_path: Path) -> None:
    """A soak of seconds ends with exit code 1, and names the promise that broke and an image of it."""
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.4", "--seed", "1", "--defect", "wrong", "--out", out]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    found = json.loads(out.read_text())
    broken = {promise["name"] for promise in found["promises"] if not promise["kept"]}
    assert "every answer is what the library says" in broken
    assert {offence["promise"] for offence in found["offences"]} == {"wrong answer"}
