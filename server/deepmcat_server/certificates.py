"""The server's certificate: read at start, watched, and replaced for new connections without a restart.

    tls_cert, tls_key, tls_client_ca ─► checked ─► gRPC asks at each handshake, and gets the newest that is good

A changed one that cannot be used is refused with a line in the log, and the one before it goes on. Connections that
are open keep the certificate that they began with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from deepmcat_core import logs
from deepmcat_core.errors import ConfigError
from deepmcat_server.metrics import Metrics
from deepmcat_server.polling import Polling

LOG = logs.logger("server.certificates")

MAX_BYTES = 2**20  # of a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the PEM files are. cert: the server's, then those that lead to its authority. client_ca: None: no mTLS."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def read(self) -> tuple[bytes, ...]:
        """What they hold now: two or three. Raises OSError."""
        return tuple(_read(path) for path in (self.cert, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """Files that can be used: what gRPC needs of them, and when the first certificate of each kind expires."""

    contents: tuple[bytes, ...]
    configuration: Any
    expiry: dict[str, datetime]


class Certificates(Polling):
    """The newest good certificate, watched while in context. Raises ConfigError where there is none at the start."""

    def __init__(self, files: Files, *, poll_s: float, metrics: Metrics) -> None:
        super().__init__([partial(asyncio.to_thread, self.refresh)], poll_s=poll_s)
        self._files = files
        self._metrics = metrics
        try:
            self._current = _checked(files.read())
        except (OSError, ValueError) as error:
            names = ", ".join(str(path) for path in (files.cert, files.key, files.client_ca) if path is not None)
            raise ConfigError(f"the TLS files {names} cannot be used: {_why(error)}") from error
        self._given = self._current
        self._refused: tuple[tuple[bytes, ...], str] | None = None
        self._show_expiry()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. With client_ca every connection needs a certificate of it: gRPC here has no 'may'."""
        return grpc.dynamic_ssl_server_credentials(
            self._current.configuration,
            self._newest,  # type: ignore[arg-type]  # its stub does not know that it may give None
            require_client_authentication=self._files.client_ca is not None,
        )

    def _newest(self) -> Any | None:
        """Called by gRPC's threads at each handshake: the configuration, if it is another than the last."""
        current = self._current
        if current is self._given:
            return None
        self._given = current
        return current.configuration

    def refresh(self) -> None:
        """Take what the files hold now, if it is new and good."""
        try:
            contents = self._files.read()
        except (OSError, ValueError) as error:
            self._refuse((), error)
            return
        if contents == self._current.contents:
            self._refused = None
            return
        try:
            self._current = _checked(contents)
        except ValueError as error:
            self._refuse(contents, error)
            return
        self._refused = None
        self._show_expiry()
        self._metrics.certificate_reloads.labels("ok").inc()
        logs.event(LOG, logging.INFO, "certificate replaced")

    def _refuse(self, contents: tuple[bytes, ...], error: Exception) -> None:
        """Say so once, and look again: it may be half written, or not valid yet."""
        why = _why(error)
        if self._refused == (contents, why):
            return
        self._refused = contents, why
        self._metrics.certificate_reloads.labels("refused").inc()
        logs.event(LOG, logging.ERROR, "certificate refused", reason=why)

    def _show_expiry(self) -> None:
        for certificate, moment in self._current.expiry.items():
            self._metrics.certificate_expiry.labels(certificate).set(moment.timestamp())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"one of them has more than {MAX_BYTES} bytes")
    return content


def _checked(contents: tuple[bytes, ...]) -> _Checked:
    """The files' contents, where a server can use them now. Raises ValueError."""
    cert, key, *client_ca = contents
    chain = _certificates(cert, "tls_cert")
    _check_key(chain[0], key)
    expiry = {"server": _check_time(chain, "tls_cert")}
    if client_ca:
        expiry["client_ca"] = _check_time(_certificates(client_ca[0], "tls_client_ca"), "tls_client_ca", every=False)
    configuration = grpc.ssl_server_certificate_configuration([(key, cert)], client_ca[0] if client_ca else None)
    return _Checked(contents=contents, configuration=configuration, expiry=expiry)


def _certificates(content: bytes, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ValueError(f"{setting} holds no certificate in PEM") from error


def _check_key(certificate: x509.Certificate, content: bytes) -> None:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise ValueError("tls_key has a password; give a key without one, readable by the server alone") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("tls_key holds no private key in PEM") from error
    publics = (key.public_key(), certificate.public_key())
    first, second = (k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for k in publics)
    if first != second:
        raise ValueError("tls_key is not the key of tls_cert")


def _check_time(certificates: Sequence[x509.Certificate], setting: str, *, every: bool = True) -> datetime:
    """When the first expires; of those valid now, unless `every` has to be: a bundle may keep old ones."""
    now = datetime.now(UTC)
    valid = [c for c in certificates if c.not_valid_before_utc <= now < c.not_valid_after_utc]
    if not valid or (every and len(valid) < len(certificates)):
        expired = any(c.not_valid_after_utc <= now for c in certificates)
        raise ValueError(f"a certificate of {setting} {'has expired' if expired else 'is not valid yet'}")
    return min(c.not_valid_after_utc for c in valid)


def _why(error: Exception) -> str:
    """The reason without the path: where the files are is the operator's, and known."""
    return (error.strerror or "cannot be read").lower() if isinstance(error, OSError) else str(error)
