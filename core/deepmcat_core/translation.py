"""The border to other people's decoders: what they raise leaves here as one of our errors, and they do it quietly.

pydicom, Pillow, numpy and the codecs raise what the moment suggests: ValueError, AttributeError, KeyError,
struct.error, RecursionError, MemoryError, zlib.error, their own. Their messages and warnings quote header values, so
neither may get into an error of ours, a log or a terminal.

Warnings filters belong to the whole process: `warnings.catch_warnings` in threads that overlap restores them in the
wrong order, and silences what others have to say. So a filter of ours comes with the first thread and goes with the
last, and matches in those threads alone. Left behind in a list that somebody else had saved, it matches nothing.
libtiff, which writes errors to the terminal for lack of a handler that somebody set, has none for as long.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
from PIL import _imaging

from deepmcat_core.errors import CorruptImage, ImageError, ImageTooLarge, UnsupportedImage

# pydicom logs what it warns about, with values from the header in it.
logging.getLogger("pydicom").propagate = False


class _Quiet(threading.local):
    """What stands for a regular expression in our filter: any message matches in a thread within `translated`."""

    depth = 0  # of `translated` within itself; a thread's own

    def match(self, message: str) -> bool:
        """Whether to ignore a warning, asked by `warnings` in the thread that warns."""
        return self.depth > 0


_quiet = _Quiet()
_FILTER = ("ignore", _quiet, Warning, None, 0)


def _libtiff_handler() -> Callable[[Any], Any] | None:
    """TIFFSetErrorHandler of the libtiff that Pillow uses, and silences warnings of; None where it is a part of it."""
    try:
        setter = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler  # found in what it is linked with
    except (AttributeError, OSError):
        return None
    setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return cast("Callable[[Any], Any]", setter)


_set_libtiff_handler = _libtiff_handler()
_others_handler: Any = None  # what libtiff had before the first thread

_threads = 0  # within `translated`
_threads_lock = threading.Lock()


@contextmanager
def translated() -> Iterator[None]:
    """Raise ImageError, from its cause, for anything that goes wrong inside; silence this thread's warnings."""
    try:
        with _silence(), np.errstate(all="ignore"):
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLarge("the image needs more memory than there is") from error
    except RecursionError as error:
        raise ImageTooLarge("the image's sequences are nested too deeply") from error
    except NotImplementedError as error:
        raise UnsupportedImage("the image is encoded in a way that is not read") from error
    except Exception as error:  # anything at all: a decoder must not be able to end a run or a stream
        raise CorruptImage("the image's bytes do not mean what they say; it cannot be decoded") from error


@contextmanager
def _silence() -> Iterator[None]:
    _quiet.depth += 1
    try:
        _count_threads(1 if _quiet.depth == 1 else 0)
        yield
    finally:
        if _quiet.depth == 1:
            _count_threads(-1)
        _quiet.depth -= 1


def _count_threads(change: int) -> None:
    """Have the filter before all others while there are threads for it; others may have put theirs in front."""
    global _threads, _others_handler
    with _threads_lock:
        before, _threads = _threads, _threads + change
        if _set_libtiff_handler is not None and (before == 0) != (_threads == 0):
            _others_handler = _set_libtiff_handler(None if _threads else _others_handler)
        filters = cast("list[object]", warnings.filters)
        if _threads and filters and filters[0] is _FILTER:
            return
        with suppress(ValueError):  # somebody else has emptied the list, or put back one from before
            filters.remove(_FILTER)
        if _threads:
            filters.insert(0, _FILTER)
