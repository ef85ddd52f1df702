"""The admin port: /livez, /readyz and /metrics in plain text, for probes and Prometheus.

A thread of its own, so that a probe is answered whatever the event loop does: that it does nothing is an answer, too.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from deepmcat_core import logs
from deepmcat_core.errors import ConfigError
from deepmcat_server.addresses import Address

LOG = logs.logger("server.admin")
REQUEST_TIMEOUT_S = 10
LATE_S, STUCK_S = 10.0, 60.0
"""An event loop that has not gone round for so long is not ready; and nothing but a new start will help it."""

UNAVAILABLE = "503 Service Unavailable"

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: Address, handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's full name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A log line where the base class prints a traceback."""
        logs.event(LOG, logging.WARNING, "admin request failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S  # a caller that sends nothing does not keep its thread

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: paths are the caller's text."""


class Admin:
    """The admin port, open while in context. `ready` says what /readyz answers; it starts with false.

    silence_s: for how long the event loop has not gone round (pulse.py). From any thread.
    """

    def __init__(
        self, address: Address, registry: CollectorRegistry, silence_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._wanted = address
        self._metrics = make_wsgi_app(registry)
        self._silence_s = silence_s
        self.ready = False

    @property
    def address(self) -> Address:
        """Where it is bound."""
        host, port = self._server.server_address[:2]
        return Address(str(host), int(port))

    def __enter__(self) -> Self:
        """Bind and serve. Raises ConfigError where the port is busy."""
        try:
            self._server = _Server(self._wanted, _Handler)
        except OSError as error:
            why = f": {error.strerror.lower()}" if error.strerror else ""
            raise ConfigError(f"cannot listen on {self._wanted}{why}; choose another address with --admin") from error
        self._server.set_app(self._app)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="deepmcat-admin", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop and close."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        silence_s = self._silence_s()
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)  # type: ignore[no-any-return]
            case "/livez" if silence_s < STUCK_S:
                return _text(start_response, "200 OK", "ok")
            case "/readyz" if self.ready and silence_s < LATE_S:
                return _text(start_response, "200 OK", "ok")
            case "/livez" | "/readyz" if silence_s >= LATE_S:
                return _text(start_response, UNAVAILABLE, f"the event loop has been busy for {silence_s:.0f} s")
            case "/readyz":
                return _text(start_response, UNAVAILABLE, "not ready")
            case _:
                return _text(start_response, "404 Not Found", "there are /livez, /readyz and /metrics")


def _text(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    body = f"{text}\n".encode()
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]
