"""What a command does about memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

SEND = """
import resource, sys
if sys.argv[1] == "kept":
    from deepmcat_client.allocation import keep_freed
    keep_freed()
def copies(): return [bytes(bytearray(2**20)) for _ in range(8)]
copies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): copies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    """How many pages the kernel hands out for 20 times 8 copies of 1 MiB."""
    return int(subprocess.run([sys.executable, "-c", SEND, how], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_freed_is_used_again() -> None:
    """Copies of an image take the memory of those before them, not new pages."""
    assert pages("kept") < pages("as it is") / 4
