"""SIGTERM and SIGINT: the first asks to stop, the second to do so at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from deepmcat_core import logs

LOG = logs.logger("server.signals")
SECOND_SIGNAL_EXIT_CODE = 130


@contextmanager
def stopped_by_signals(on_second: Callable[[], object]) -> Iterator[asyncio.Event]:
    """An event that the first signal sets. on_second: called at each one after it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(number: signal.Signals) -> None:
        if stop.is_set():
            on_second()
            return
        logs.event(LOG, logging.INFO, "signal", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def end_at_once() -> NoReturn:
    """Leave everything as it is."""
    os._exit(SECOND_SIGNAL_EXIT_CODE)
