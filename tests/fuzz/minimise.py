"""From a file that breaks a promise to a smaller one that breaks it in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable

BUDGET_S = 20.0


def minimised(data: bytes, breaks: Callable[[bytes], bool], budget_s: float = BUDGET_S) -> bytes:
    """The file with pieces left out, then with bytes set to zero, for as long as it `breaks` and time is left."""
    deadline = time.monotonic() + budget_s

    def tried(smaller: bytes) -> bool:
        return time.monotonic() < deadline and breaks(smaller)

    size = max(1, len(data) // 2)
    while size:
        at = 0
        while at < len(data):
            smaller = data[:at] + data[at + size :]
            if smaller and tried(smaller):
                data = smaller
            else:
                at += size
        size //= 2
    size = 64
    while size:
        for at in range(0, len(data), size):
            blank = bytes(len(data[at : at + size]))
            if blank != data[at : at + size] and tried(changed := data[:at] + blank + data[at + size :]):
                data = changed
        size //= 8
    return data
