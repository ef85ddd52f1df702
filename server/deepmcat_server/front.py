"""One of several fronts, as its supervisor sees it: a process, started again when it ends, and ended when it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from deepmcat_core import logs
from deepmcat_server import ready_files
from deepmcat_server.addresses import Address

LOG = logs.logger("server.fronts")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
SETTLED_S = 60.0
"""Whoever has been SERVING for so long did not die of starting: the next wait is the first again."""

ASK_EVERY_S, ANSWER_S = 5.0, 3.0
MISSES = 3
"""So often in a row it says nothing, or that it is stuck, until it is ended: it would keep its share of connections."""

READY_FILE = "ready.json"

_LOOK_EVERY_S = 0.05
_SIGNALLED = 128  # shells' exit codes of those that a signal ended begin here
_OS_ERROR = 71  # sysexits.h, EX_OSERR


class Front:
    """A process and its next ones. admin: where it tells how it is, from when it was SERVING to its end; else None.

    is_ready: it is SERVING. has_served: it was, or one before it.
    command: what starts it, by the path of the ready file that it is to write. tell: what to write to its standard
    input, by a folder of its own. on_change: one of these is another.
    on_restart: one has died and is to be started again, after first_wait_s, and twice as long each time, unless it was
    SERVING for settled_s. ask_every_s, answer_s: how often a SERVING one is asked whether it lives, and how long it may
    take to answer.
    """

    def __init__(
        self,
        number: int,
        command: Callable[[Path], Sequence[str]],
        tell: Callable[[Path], bytes],
        *,
        on_change: Callable[[], object],
        on_restart: Callable[[], object],
        first_wait_s: float = FIRST_WAIT_S,
        settled_s: float = SETTLED_S,
        ask_every_s: float = ASK_EVERY_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.number = number
        self.admin: Address | None = None
        self.is_ready = False
        self.has_served = False
        self._command = command
        self._tell = tell
        self._on_change = on_change
        self._on_restart = on_restart
        self._first_wait_s = first_wait_s
        self._settled_s = settled_s
        self._ask_every_s = ask_every_s
        self._answer_s = answer_s
        self._process: asyncio.subprocess.Process | None = None
        self._served_since: float | None = None
        self._stopping = asyncio.Event()

    async def keep(self) -> int:
        """Run it, and run it again when it ends, until `stop`, or until it ends before it has ever been SERVING.

        The exit code of the last. 128 + n: signal n has ended it, and it was not asked to stop.
        """
        wait_s = self._first_wait_s
        while True:
            code = await self._run()
            if self._stopping.is_set():
                return code
            if not self.has_served:
                if code > _SIGNALLED:  # else it has said why
                    logs.event(LOG, logging.ERROR, "front not started", front=self.number, code=code)
                return code
            if self._served_since is not None and time.monotonic() - self._served_since > self._settled_s:
                wait_s = self._first_wait_s
            logs.event(LOG, logging.ERROR, "front died", front=self.number, code=code, duration_s=wait_s)
            self._on_restart()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
                return 0
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def stop(self) -> None:
        """Ask it to drain and end, and start no other."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run(self) -> int:
        """One process, from its start to its end."""
        self._served_since = None
        try:
            # A new one each time: what cleans up old temporary files may have removed the last.
            with TemporaryDirectory(prefix="deepmcat-front-", ignore_cleanup_errors=True) as name:
                await self._start(Path(name))
                code = await self._watched(Path(name) / READY_FILE)
        except OSError as error:  # no more processes, no memory for one, or no folder
            logs.event(LOG, logging.ERROR, "front not started", front=self.number, error_type=type(error).__name__)
            return _OS_ERROR
        finally:
            self._process = None
        served, self.admin, self.is_ready = self.has_served and self.admin is not None, None, False
        self._on_change()
        if code == -signal.SIGTERM and self._stopping.is_set() and not served:
            return 0  # it was not so far yet that it could drain
        return code if code >= 0 else _SIGNALLED - code

    async def _start(self, folder: Path) -> None:
        line = self._tell(folder)
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command(folder / READY_FILE),
            stdin=asyncio.subprocess.PIPE,  # stays open: lifeline.py
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
        )
        if self._stopping.is_set():
            self.stop()
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # its end says more
            process.stdin.write(line)
            await process.stdin.drain()

    async def _watched(self, ready_file: Path) -> int:
        """Its exit code, when it has ended; one that hangs is ended."""
        assert self._process is not None
        ending = asyncio.create_task(self._process.wait())
        looking = asyncio.create_task(self._look_after(ready_file))
        await asyncio.wait((ending, looking), return_when=asyncio.FIRST_COMPLETED)
        if looking.done() and looking.exception() is not None:  # what it wrote cannot be read: it is of no use
            logs.event(LOG, logging.ERROR, "front hangs", front=self.number, reason="ready file")
            self.kill()
        code = await ending
        looking.cancel()
        return code

    async def _look_after(self, ready_file: Path) -> None:
        """From its ready file on: whether it is ready, and whether it hangs."""
        while (written := ready_files.read(ready_file)) is None:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(_LOOK_EVERY_S)
        self.admin, self.is_ready, self.has_served = written.admin, True, True
        self._served_since = time.monotonic()
        self._on_change()
        misses = 0
        while misses < MISSES and not self._stopping.is_set():
            await asyncio.sleep(self._ask_every_s)
            lives, is_ready = await asyncio.to_thread(_asked, written.admin, self._answer_s)
            misses = 0 if lives else misses + 1
            if is_ready != self.is_ready:
                self.is_ready = is_ready
                self._on_change()
        if not self._stopping.is_set():  # its draining has an end of its own
            logs.event(LOG, logging.ERROR, "front hangs", front=self.number)
            self.kill()


def _asked(admin: Address, timeout_s: float) -> tuple[bool, bool]:
    """Whether a server says that it lives, and that it is ready (admin.py)."""
    lives = _says_ok(admin, "/livez", timeout_s)
    return lives, lives and _says_ok(admin, "/readyz", timeout_s)


def _says_ok(admin: Address, path: str, timeout_s: float) -> bool:
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
