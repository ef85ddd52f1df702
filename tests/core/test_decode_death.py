"""What the end of a worker means: why it ended, and what becomes of the image in its hands."""

from __future__ import annotations

import signal
from concurrent.futures import BrokenExecutor

import pytest

from deepmcat_core.decode_death import CRASHES, KILLS, NO_MEMORY_EXIT, Cause, Tries, cause_of_death
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.errors import CorruptImage, ImageTooLarge


@pytest.mark.parametrize(
    ("exit_code", "last_words", "cause"),
    [
        (-signal.SIGSEGV, b"", Cause.CRASH),
        (-signal.SIGABRT, b"free(): invalid pointer", Cause.CRASH),
        (-signal.SIGBUS, b"", Cause.CRASH),
        (-signal.SIGILL, b"", Cause.CRASH),
        (-signal.SIGFPE, b"", Cause.CRASH),
        (1, b"libjpeg calls exit where nobody tells it not to", Cause.CRASH),
        (0, b"", Cause.CRASH),
        (None, b"", Cause.CRASH),
        (-signal.SIGKILL, b"", Cause.KILLED),
        (-signal.SIGTERM, b"", Cause.KILLED),
        (-signal.SIGHUP, b"", Cause.KILLED),
        (-signal.SIGXCPU, b"", Cause.KILLED),
        (-signal.SIGPROF, b"", Cause.CPU),
        (NO_MEMORY_EXIT, b"", Cause.MEMORY),
        (-signal.SIGABRT, b"terminate called after throwing an instance of 'std::bad_alloc'", Cause.MEMORY),
        (-signal.SIGABRT, b"memory allocation of 4294967296 bytes failed", Cause.MEMORY),
        (-signal.SIGKILL, b"std::bad_alloc", Cause.KILLED),
    ],
)
def test_causes(exit_code, last_words, cause):
    """Faults and exits are the codec's doing; our timer is SIGPROF; any other signal came from outside."""
    assert cause_of_death(exit_code, last_words) is cause


@pytest.mark.parametrize(
    ("causes", "error"),
    [
        ([Cause.CRASH] * CRASHES, CorruptImage),
        ([Cause.KILLED] * (KILLS - 1) + [Cause.CRASH] * CRASHES, CorruptImage),
        ([Cause.CRASH] * (CRASHES - 1) + [Cause.KILLED] * KILLS, BrokenExecutor),
        ([Cause.MEMORY], ImageTooLarge),
        ([Cause.CPU], ImageTooLarge),
        ([Cause.TIME], ImageTooLarge),
        ([Cause.CRASH, Cause.TIME], ImageTooLarge),
    ],
)
def test_tries_end(causes, error):
    """A crash gets one more try, a kill a few, a limit none; kills and crashes are counted apart."""
    tries = Tries(WorkerLimits())
    outcomes = [tries.after(cause) for cause in causes]

    assert outcomes[:-1] == [None] * (len(causes) - 1)
    assert type(outcomes[-1]) is error
