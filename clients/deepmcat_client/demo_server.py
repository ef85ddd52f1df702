"""A server of our own for as long as a `with`: started on free ports, waited for, ended with SIGTERM."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from deepmcat_client.errors import ServerError, Unavailable

START_S = 120.0
STOP_S = 60.0
METRICS_S = 5.0
POLL_S = 0.1

_IMAGES = re.compile(r'^deepmcat_images_total\{result="(\w+)"\} (\S+)$', re.MULTILINE)


class DemoServer:
    """`deepmcat serve` in a process. Its log is in `folder`; listen and admin are its addresses once it is open."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.listen = self.admin = ""
        self.log = folder / "serve.log"
        self._ready = folder / "ready.json"
        self._arguments = [*arguments, "--ready-file", str(self._ready)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DemoServer:
        """Start it and wait until it serves. Raises Unavailable with the way to its log."""
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "deepmcat_client", "serve", *self._arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            addresses = self._wait_until_ready(self._process)
        except BaseException:
            self._kill()
            raise
        self.listen, self.admin = addresses["listen"], addresses["admin"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make sure that it is gone, whatever happened."""
        self._kill()

    def stop(self) -> None:
        """Ask it to drain and end. Raises ServerError where it does not end with exit code 0."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server had not ended {STOP_S:g} seconds after SIGTERM; see {self.log}") from None
        if code != 0:
            raise ServerError(f"the server ended with exit code {code} after SIGTERM; see {self.log}")

    def images_by_result(self) -> dict[str, int]:
        """What its own metrics say: images answered, by result. Raises Unavailable."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=METRICS_S) as response:
                text = response.read().decode()
        except (urllib.error.URLError, TimeoutError) as error:
            raise Unavailable(f"the server's metrics at {self.admin} cannot be read; see {self.log}") from error
        return {result: int(float(count)) for result, count in _IMAGES.findall(text) if float(count)}

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> dict[str, str]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._ready.is_file():
                addresses: dict[str, str] = json.loads(self._ready.read_text(encoding="utf-8"))
                return addresses
            if process.poll() is not None:
                raise Unavailable(f"the server ended with exit code {process.returncode} at its start; see {self.log}")
            time.sleep(POLL_S)
        raise Unavailable(f"the server was not ready after {START_S:g} seconds; see {self.log}")

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
