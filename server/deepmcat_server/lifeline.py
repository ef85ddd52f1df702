"""The pipe between a supervisor and a front: while the supervisor lives, standard input does not end.

It ends whatever the supervisor dies of. A thread waits for that, so that a front whose event loop is busy ends, too,
and its decoding workers with it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from deepmcat_core import logs
from deepmcat_server.signals import end_at_once

LOG = logs.logger("server.lifeline")


def end_with_supervisor() -> None:
    """Have this process end at once when standard input ends."""
    threading.Thread(target=_wait, args=(sys.stdin.fileno(),), name="deepmcat-lifeline", daemon=True).start()


def _wait(descriptor: int) -> None:
    while os.read(descriptor, 1):  # nothing is written any more
        pass
    logs.event(LOG, logging.ERROR, "supervisor gone")
    end_at_once()
