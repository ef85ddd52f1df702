"""What our dependencies would tell others of us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "import deepmcat_core, onnxruntime, time; time.sleep(0.5)"


def files_after(program: str, folder: Path) -> list[Path]:
    """What a process leaves in its home and where it keeps temporary files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "CI", "XDG_"))}
    environment |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    return [path for path in folder.rglob("*") if path.is_file()]


def test_onnx_runtime_tells_nobody_what_it_runs(tmp_path: Path) -> None:
    """Importing it after our core sets up no uploader: no device id, no session and no queue of events on the disk."""
    pytest.importorskip("onnxruntime")
    assert files_after(PROGRAM, tmp_path) == []
