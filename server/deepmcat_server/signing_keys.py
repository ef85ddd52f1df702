"""The keys that sign the tokens of an issuer: a JSON Web Key Set (RFC 7517) from a file or a URL, kept and renewed.

    known key id ─► the key, at once
    unknown one  ─► fetch, shared by all who wait and limited in rate ─► the key, or Unauthenticated

A background task fetches regularly, so a key that the issuer has withdrawn goes away and one that it has added is
there before its first token. Where fetching fails the keys go on for MAX_STALE_S.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import jwt

from deepmcat_core import logs
from deepmcat_core.errors import ConfigError
from deepmcat_server.errors import ServerBusy, Unauthenticated
from deepmcat_server.metrics import Metrics
from deepmcat_server.quotas import Bucket

LOG = logs.logger("server.signing_keys")

_RSA = ("RSA", None)
ALGORITHMS: dict[str, tuple[str, str | None]] = {
    "RS256": _RSA, "RS384": _RSA, "RS512": _RSA, "PS256": _RSA, "PS384": _RSA, "PS512": _RSA,
    "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"), "EdDSA": ("OKP", "Ed25519"),
}  # fmt: skip
"""The kind of key and the curve that each algorithm takes (RFC 7518, 3.1; RFC 8037, 3.1). All are asymmetric: with a
shared secret whoever verifies could sign, and a public key must never be taken for one."""

MAX_BYTES = 2**20
FETCH_TIMEOUT_S = 10.0
MAX_STALE_S = 24 * 3600.0
"""How old keys may get where they cannot be fetched again: an issuer that is away must not stop the work of a day,
and a withdrawn key must not live for ever."""
REFETCH_EVERY_S, REFETCH_BURST = 30.0, 3.0
"""How often unknown key ids lead to a fetch: anybody can invent one."""
MAX_WAITING = 256
"""Calls that wait for a fetch at once. They have no place in the gate yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A public key and what it is for. algorithm: the one that the issuer has bound it to; None: any of its kind."""

    public_key: Any  # a public key of cryptography, which PyJWT verifies with
    kty: str
    crv: str | None
    algorithm: str | None


class SigningKeys:
    """The keys of one issuer, open while in context. Used on the event loop only.

    location: an https URL, http on loopback, or a file. clock: monotonic seconds.
    """

    def __init__(
        self, location: str, *, refresh_s: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._location = location
        self._refresh_s = refresh_s
        self._metrics = metrics
        self._clock = clock
        self._keys: dict[str | None, SigningKey] = {}
        self._fetched_at = clock()
        self._refetches = Bucket(1 / REFETCH_EVERY_S, REFETCH_BURST, clock())
        self._waiting = 0
        self._fetch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Fetch, and keep fetching. Raises ConfigError for a file that has no keys; a URL may come later."""
        try:
            self._keys = await asyncio.to_thread(_load, self._location)
        except (OSError, ValueError) as error:
            if not is_url(self._location):
                raise ConfigError(f"jwt_jwks {self._location} cannot be used: {_why(error)}") from error
            self._failed(error)
        else:
            self._metrics.key_fetches.labels("ok").inc()
        self._task = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop fetching."""
        tasks = [task for task in (self._task, self._fetch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, kid: str | None) -> SigningKey:
        """The key of this id; of a token without one, the only key. Raises Unauthenticated, ServerBusy."""
        if self._clock() - self._fetched_at > MAX_STALE_S:
            raise Unauthenticated("the keys of the token's issuer are too old and cannot be fetched; tell the operator")
        found = self._known(kid)
        if found is None and self._may_refetch():
            await self._refetched()
            found = self._known(kid)
        if found is None:
            raise Unauthenticated("the token is signed with a key that its issuer does not publish; get a new token")
        return found

    def _known(self, kid: str | None) -> SigningKey | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _may_refetch(self) -> bool:
        """Whether a fetch is under way, or one may be begun."""
        if self._fetch is not None:
            return True
        if self._refetches.wait_s(1, self._clock()) > 0:
            return False
        self._refetches.take(1)
        return True

    async def _refetched(self) -> None:
        """Wait for the fetch that is under way, or begin one. Who leaves does not end it for the others."""
        if self._waiting >= MAX_WAITING:
            raise ServerBusy("many calls wait for the keys of the token's issuer; send the call again later")
        self._waiting += 1
        try:
            await asyncio.shield(self._shared_fetch())
        finally:
            self._waiting -= 1

    def _shared_fetch(self) -> asyncio.Task[None]:
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._renew())
        return self._fetch

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await asyncio.shield(self._shared_fetch())

    async def _renew(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_load, self._location)
        except (OSError, ValueError) as error:
            self._failed(error)
        else:
            self._fetched_at = self._clock()
            self._metrics.key_fetches.labels("ok").inc()
        finally:
            self._fetch = None

    def _failed(self, error: Exception) -> None:
        self._metrics.key_fetches.labels("failed").inc()
        logs.event(LOG, logging.WARNING, "signing keys not fetched", reason=_why(error), count=len(self._keys))


def is_url(location: str) -> bool:
    """Whether keys come over the network."""
    return "://" in location


def _load(location: str) -> dict[str | None, SigningKey]:
    """The keys at a location by id. Raises OSError, and ValueError where there is none that can verify."""
    content = _get(location) if is_url(location) else _read(Path(location))
    try:
        data = json.loads(content)  # JSONDecodeError and UnicodeDecodeError are ValueErrors
    except RecursionError as error:
        raise ValueError("no JSON Web Key Set: nested too deeply") from error
    rows = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise ValueError("no JSON Web Key Set: no list of keys")
    found = {row.get("kid"): key for row in rows if isinstance(row, dict) and (key := _key(row)) is not None}
    if not found:
        raise ValueError("no public key that signs in the JSON Web Key Set")
    return found


def _key(row: dict[str, Any]) -> SigningKey | None:
    """The key of one entry; None for one that is for something else, or of a kind we do not know (RFC 7517, 5)."""
    if row.get("kty") not in {"RSA", "EC", "OKP"} or row.get("use", "sig") != "sig" or "d" in row:
        return None
    if not isinstance(row.get("kid"), str | None) or row.get("alg") not in (None, *ALGORITHMS):
        return None
    try:
        key = jwt.PyJWK(row)
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        return None
    return SigningKey(public_key=key.key, kty=row["kty"], crv=row.get("crv"), algorithm=row.get("alg"))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return _bounded(file.read(MAX_BYTES + 1))


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is refused: it could lead from https to anywhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> Request | None:
        """None: urllib then raises the redirect as an HTTPError."""
        return None


def _get(url: str) -> bytes:
    """The content of a URL, in a thread. Raises OSError, ValueError."""
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    content = bytearray()
    request = Request(url, headers={"Accept": "application/json"})  # noqa: S310  # the settings allow https only
    try:
        with build_opener(_NoRedirects).open(request, timeout=FETCH_TIMEOUT_S) as response:
            while len(content) <= MAX_BYTES and (piece := response.read1(2**16)):
                content += piece
                if time.monotonic() > deadline:  # the socket's timeout is of each read
                    raise TimeoutError
    except HTTPException as error:
        raise ValueError("its answer is not HTTP") from error
    return _bounded(bytes(content))


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return content


def _why(error: Exception) -> str:
    """A short reason in our own words: an exception's text can repeat what a server sent."""
    match error:
        case TimeoutError() | URLError(reason=TimeoutError()):
            return "no answer in time"
        case HTTPError(code=code):
            return f"its URL answers with HTTP status {code}"
        case URLError(reason=ssl.SSLError()):
            return "the TLS certificate of its URL is not trusted"
        case URLError():
            return "no answer from its URL"
        case json.JSONDecodeError() | UnicodeDecodeError():
            return "it is not JSON"
        case OSError():
            return (error.strerror or "it cannot be read").lower()
        case _:
            return str(error)
