"""`python -m benchmarks`: the benchmark there is. It runs as a script does, so that both ways import the same files."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(FOLDER / "mednist.py"), run_name="__main__")
