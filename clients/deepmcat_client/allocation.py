"""How this process gets memory. For commands, whose process is their own: a library leaves that to its caller."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_KEPT_BYTES = 2**26  # the half of it is the most that glibc takes for a threshold of mmap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed() -> None:
    """Have glibc keep what an image leaves for the next one (mallopt(3)).

    By its own rules each copy of an image, of which sending takes a few, is new pages that the kernel fills with
    zeros one by one: a third of the processor time of sending files of half a megabyte.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
