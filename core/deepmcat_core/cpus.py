"""The CPUs that there are for us."""

from __future__ import annotations

import os
from pathlib import Path

_BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def available_cpus() -> int:
    """The number of CPUs that this process may use: of a machine's many, a container or `taskset` may leave a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether these CPUs have instructions for bfloat16: AVX512-BF16 or AMX. Asked of Linux; elsewhere, no."""
    try:
        return not _BFLOAT16.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return False
