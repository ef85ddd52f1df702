"""Several complete servers behind one port, and the supervisor that starts them.

    supervisor ── holds the port, listens on it never; the admin port; starts, counts and stops
        ├── front 0 ─┐
        ├── front 1 ─┼─ each listens on the port (SO_REUSEPORT): the kernel gives each its share of connections
        └── front … ─┘

The first is started alone, so that a wrong setting is told once. The supervisor imports no engine and opens no
artifact.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry

from deepmcat_core import logs
from deepmcat_server import port, ready_files
from deepmcat_server.addresses import Address, parse_address
from deepmcat_server.admin import Admin
from deepmcat_server.config import Settings
from deepmcat_server.front import Front
from deepmcat_server.front_metrics import FrontMetrics, MergedMetrics
from deepmcat_server.pulse import Pulse
from deepmcat_server.shares import share_of, variables
from deepmcat_server.signals import SECOND_SIGNAL_EXIT_CODE, stopped_by_signals

LOG = logs.logger("server.fronts")
MODULE = "deepmcat_client"  # `python -m` of it is the command line


async def supervise(settings: Settings, artifact: Path, ready_file: Path | None = None) -> int:
    """Serve `artifact` from `settings.fronts` processes until SIGTERM or SIGINT; the exit code. Raises ConfigError.

    A second signal ends them at once. Where one ends before it was ever SERVING, all end with its exit code: it has
    said why.
    """
    if ready_file is not None:
        ready_files.clear(ready_file)
    registry, pulse = CollectorRegistry(), Pulse()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(pulse)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="deepmcat-fronts-")))
        listen = stack.enter_context(port.reserved(parse_address(settings.listen)))
        admin = stack.enter_context(Admin(parse_address(settings.admin), registry, lambda: pulse.silence_s))
        key = folder / "caller-ids"
        key.write_text(secrets.token_hex(32))
        fronts = Fronts(
            settings.fronts,
            partial(_command, artifact),
            variables(share_of(settings, listen=listen, caller_id_key=key), os.environ),
            folder,
            admin,
            registry,
        )
        at_once = asyncio.Event()
        with stopped_by_signals(at_once.set) as stop:
            return await fronts.run(listen, ready_file, stop, at_once)


class Fronts:
    """All fronts, and what the admin port says of them."""

    def __init__(
        self,
        count: int,
        command: Callable[[Path], Sequence[str]],
        environ: dict[str, str],
        folder: Path,
        admin: Admin,
        registry: CollectorRegistry,
    ) -> None:
        self._admin = admin
        self._changed = asyncio.Event()
        self._stopping = False
        metrics = FrontMetrics(registry)
        self._fronts = [
            Front(i, command, environ, folder, on_change=self._on_change, on_restart=metrics.restarts.inc)
            for i in range(count)
        ]
        metrics.fronts.set_function(lambda: len(self._serving()))
        registry.register(MergedMetrics(self._serving))

    async def run(self, listen: Address, ready_file: Path | None, stop: asyncio.Event, at_once: asyncio.Event) -> int:
        """From the start of the first to the end of the last; the exit code. at_once: then there is no draining."""
        stopping = asyncio.create_task(stop.wait())
        keeping = [asyncio.create_task(self._fronts[0].keep())]
        try:
            if await self._all_serve(self._fronts[:1], stopping, *keeping):
                keeping += [asyncio.create_task(front.keep()) for front in self._fronts[1:]]
                if await self._all_serve(self._fronts, stopping, *keeping):
                    self._announce(listen, ready_file)
                    await _first_of(stopping, *keeping)
        finally:
            codes = await self._end(keeping, at_once)
            stopping.cancel()
        code = SECOND_SIGNAL_EXIT_CODE if at_once.is_set() else next((code for code in codes if code), 0)
        logs.event(LOG, logging.INFO, "fronts stopped", code=code)
        return code

    async def _all_serve(self, fronts: Sequence[Front], *ends: asyncio.Task[Any]) -> bool:
        """Wait until they do; False: one of `ends` was first."""
        while not all(front.has_served for front in fronts):
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            await _first_of(changed, *ends)
            changed.cancel()
            if any(end.done() for end in ends):
                return False
        return True

    async def _end(self, keeping: Sequence[asyncio.Task[int]], at_once: asyncio.Event) -> list[int]:
        """Ask all to drain, and wait until they have; their exit codes."""
        self._stopping = True
        self._on_change()
        for front in self._fronts:
            front.stop()
        hurrying = asyncio.create_task(at_once.wait())
        ended = asyncio.gather(*keeping)
        await _first_of(hurrying, ended)
        if at_once.is_set():
            for front in self._fronts:
                front.kill()
        hurrying.cancel()
        return await ended

    def _serving(self) -> dict[int, Address]:
        """Where each that is SERVING tells how it is. From any thread."""
        return {front.number: admin for front in self._fronts if (admin := front.admin) is not None}

    def _on_change(self) -> None:
        self._admin.ready = not self._stopping and len(self._serving()) == len(self._fronts)
        self._changed.set()

    def _announce(self, listen: Address, ready_file: Path | None) -> None:
        """Say where, in the log and in the ready file."""
        logs.event(LOG, logging.INFO, "fronts serving", address=str(listen), count=len(self._fronts))
        logs.event(LOG, logging.INFO, "admin listening", address=str(self._admin.address))
        if ready_file is not None:
            ready_files.write(ready_file, listen=listen, admin=self._admin.address)


def _command(artifact: Path, ready_file: Path) -> list[str]:
    """What starts a front; settings are in its environment."""
    options = ["--as-front", "--ready-file", str(ready_file)]
    return [sys.executable, "-m", MODULE, "serve", *options, "--", str(artifact)]


async def _first_of(*ends: asyncio.Future[Any]) -> None:
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
