"""What the server's own processes beside it take: above all the decoding workers, whose work is most of the CPU's.

Read from /proc when somebody asks, so that nothing has to be reported from process to process. Elsewhere than on Linux
all are 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PROC = Path("/proc")


class ChildProcesses(Collector):
    """Count, CPU seconds and resident memory of this process's children."""

    def collect(self) -> Iterator[Metric]:
        """Now. CPU seconds never fall: what has ended is in the kernel's sum, and what has not is added to it."""
        children = [usage for pid in _children() if (usage := _usage(pid)) is not None]
        yield GaugeMetricFamily(
            "deepmcat_child_processes", "Processes of the server beside itself.", value=len(children)
        )
        yield CounterMetricFamily(
            "deepmcat_child_cpu_seconds",
            "CPU seconds of the server's processes beside itself, those that have ended included.",
            value=_ended_cpu_s() + sum(cpu_s for cpu_s, _ in children),
        )
        yield GaugeMetricFamily(
            "deepmcat_child_resident_memory_bytes",
            "Resident memory of the server's processes beside itself; what they share counts for each.",
            value=sum(resident_bytes for _, resident_bytes in children),
        )

    def describe(self) -> Iterator[Metric]:
        """The same: names are what a registry asks for."""
        return self.collect()


def _children() -> set[int]:
    """Of every thread: a child belongs to the thread that started it (proc(5), /proc/pid/task/tid/children)."""
    found: set[int] = set()
    for file in PROC.glob("self/task/*/children"):
        try:
            found |= {int(pid) for pid in file.read_text().split()}
        except OSError:  # the thread has ended meanwhile
            continue
    return found


def _usage(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process; None where it has ended (proc(5), /proc/pid/stat)."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # from the third on: the second, a name, may have spaces in it
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return cpu_s, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")  # rss


def _ended_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
