"""The CPUs that are ours to use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepmcat_core.cpus import available_cpus, multiplies_bfloat16

CHILD = """
import os
from deepmcat_core.cpus import available_cpus
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(available_cpus())
"""


def test_there_is_one_at_least() -> None:
    """Some number of CPUs, and never more than the machine has."""
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not limit processes to CPUs")
def test_cpus_that_were_taken_away_do_not_count() -> None:
    """A process that is held to one CPU has one, whatever the machine has."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True)

    assert found.stdout == "1\n"


@pytest.mark.parametrize(
    ("flags", "multiplies"),
    [("fpu avx512f avx512_bf16 sse", True), ("fpu\tamx_bf16", True), ("fpu avx512f", False), ("", False)],
)
def test_instructions_for_bfloat16(tmp_path: Path, flags: str, multiplies: bool) -> None:
    """What the kernel lists decides; where it lists nothing there are none."""
    (tmp_path / "cpuinfo").write_text(f"model name : a CPU\nflags\t: {flags}\n")

    assert multiplies_bfloat16(tmp_path / "cpuinfo") is multiplies
    assert not multiplies_bfloat16(tmp_path / "none")
