"""How many CPUs there are for us."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """The number of CPUs that this process may use: of a machine's many, a container or `taskset` may leave a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
