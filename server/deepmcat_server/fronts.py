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
from deepmcat_core.errors import ConfigError
from deepmcat_server import port, ready_files
from deepmcat_server.addresses import Address, parse_address
from deepmcat_server.admin import Admin
from deepmcat_server.config import Settings
from deepmcat_server.front import Front
from deepmcat_server.front_metrics import FrontMetrics, MergedMetrics
from deepmcat_server.pulse import Pulse
from deepmcat_server.shares import share_of, told
from deepmcat_server.signals import SECOND_SIGNAL_EXIT_CODE, stopped_by_signals

LOG = logs.logger("server.fronts")
SLACK_S = 10.0  # beyond what draining may take: for workers that end, and for what the machine does meanwhile
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
        listen = stack.enter_context(port.reserved(parse_address(settings.listen)))
        admin = stack.enter_context(Admin(parse_address(settings.admin), registry, lambda: pulse.silence_s))
        _require_temporary_folder()
        tell = partial(_told, settings, listen, secrets.token_hex(32))
        patience_s = settings.drain_s + settings.grace_s + SLACK_S
        fronts = Fronts(settings.fronts, partial(front_command, artifact), tell, admin, registry, patience_s=patience_s)
        at_once = asyncio.Event()
        with stopped_by_signals(at_once.set) as stop:
            return await fronts.run(listen, ready_file, stop, at_once)


class Fronts:
    """All fronts, and what the admin port says of them."""

    def __init__(
        self,
        count: int,
        command: Callable[[Path], Sequence[str]],
        tell: Callable[[int, Path], bytes],
        admin: Admin,
        registry: CollectorRegistry,
        *,
        patience_s: float,
    ) -> None:
        """command, tell: as for `Front`. patience_s: for draining; who is not done then is ended."""
        self._admin = admin
        self._changed = asyncio.Event()
        self._stopping = False
        self._patience_s = patience_s
        metrics = FrontMetrics(registry)
        self._fronts = [
            Front(i, command, partial(tell, i), on_change=self._on_change, on_restart=metrics.restarts.inc)
            for i in range(count)
        ]
        metrics.wanted.set(count)
        metrics.fronts.set_function(lambda: sum(front.is_ready for front in self._fronts))
        registry.register(MergedMetrics(self._admins))

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
        """Ask all to drain, and wait until they have, for as long as that may take; their exit codes."""
        self._stopping = True
        self._on_change()
        for front in self._fronts:
            front.stop()
        hurrying = asyncio.create_task(at_once.wait())
        ended = asyncio.gather(*keeping)
        await asyncio.wait((hurrying, ended), return_when=asyncio.FIRST_COMPLETED, timeout=self._patience_s)
        if not ended.done():
            if not at_once.is_set():
                logs.event(LOG, logging.ERROR, "fronts did not stop", duration_s=self._patience_s)
            for front in self._fronts:
                front.kill()
        hurrying.cancel()
        return await ended

    def _admins(self) -> dict[int, Address]:
        """Where each that has come so far tells how it is. From any thread."""
        return {front.number: admin for front in self._fronts if (admin := front.admin) is not None}

    def _on_change(self) -> None:
        """Ready where all have been SERVING and one is: those that are left answer better than nobody."""
        begun = all(front.has_served for front in self._fronts)
        self._admin.ready = begun and not self._stopping and any(front.is_ready for front in self._fronts)
        self._changed.set()

    def _announce(self, listen: Address, ready_file: Path | None) -> None:
        """Say where, in the log and in the ready file."""
        logs.event(LOG, logging.INFO, "fronts serving", address=str(listen), count=len(self._fronts))
        logs.event(LOG, logging.INFO, "admin listening", address=str(self._admin.address))
        if ready_file is not None:
            ready_files.write(ready_file, listen=listen, admin=self._admin.address)


def front_command(artifact: Path, ready_file: Path) -> list[str]:
    """What starts a front; settings are in its environment."""
    options = ["--as-front", "--ready-file", str(ready_file)]
    # -P: as the command that is installed does, it looks for no modules where it happens to be started.
    return [*_interpreter(), "-P", "-m", MODULE, "serve", *options, "--", str(artifact)]


def _interpreter() -> list[str]:
    """What runs here, and what its command line says of where to look for modules, of warnings and of asserts."""
    told = {"-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    flags = [flag for flag, is_set in told.items() if is_set] + ["-O"] * sys.flags.optimize
    return [sys.executable, *flags, *(f"-W{warning}" for warning in sys.warnoptions)]


def _told(settings: Settings, listen: Address, key: str, number: int, folder: Path) -> bytes:
    """What a front is told; the key of callers' ids, which is the same for all, lies in its folder."""
    file = folder / "caller-ids"
    if settings.caller_id_key_file is None:
        file.write_text(key)
    return told(number, share_of(settings, listen=listen, caller_id_key=file))


def _require_temporary_folder() -> None:
    """Raises ConfigError where there is none, or none that can be written."""
    try:
        with TemporaryDirectory(prefix="deepmcat-front-"):
            pass
    except OSError as error:
        raise ConfigError(
            "fronts above 1 need a folder for temporary files that can be written: set TMPDIR to one"
        ) from error


async def _first_of(*ends: asyncio.Future[Any]) -> None:
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
