"""Who calls: by a bearer token, else by the certificate of the connection, else by address where nobody asks.

A caller's key is one string, the same from call to call, and begins with what vouches for it, so that none can pass
for another: `jwt:SUBJECT`, `spiffe://…`, `dns:NAME`, `cn:NAME`, `ip:ADDRESS`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

from deepmcat_server.errors import Unauthenticated
from deepmcat_server.scopes import Scope

KINDS = ("jwt:", "spiffe://", "dns:", "cn:", "ip:")
"""What keys begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, as a key, and what it may do."""

    key: str
    scopes: frozenset[Scope]


class TokenReader(Protocol):
    """What reads bearer tokens: `tokens.Tokens`."""

    async def caller(self, token: str) -> Caller:
        """Whom a token speaks for. Raises Unauthenticated."""


class Callers:
    """Tells the caller of each call.

    A token, where tokens are read and there is one, says whom the call is for: one that does not hold is not made up
    for by a certificate. certificates: scopes by pattern of a key; empty: certificates say nothing.
    anonymous: what everybody may do where neither tokens nor certificates say who calls.
    """

    def __init__(
        self,
        *,
        tokens: TokenReader | None = None,
        certificates: Mapping[str, Collection[Scope]] | None = None,
        anonymous: Collection[Scope] = (),
    ) -> None:
        self._tokens = tokens
        self._certificates = certificates or {}
        self._anonymous = frozenset(anonymous)

    async def of(self, context: Any) -> Caller:
        """The caller of the call of a `grpc.aio.ServicerContext`. Raises Unauthenticated."""
        if self._tokens is not None and (token := _bearer(context.invocation_metadata() or ())) is not None:
            return await self._tokens.caller(token)
        if self._certificates and (key := certificate_key(context.auth_context())) is not None:
            return Caller(key=key, scopes=self._scopes(key))
        if self._tokens is None and not self._certificates:
            return Caller(key=peer_key(context.peer()), scopes=self._anonymous)
        raise Unauthenticated(f"the call does not say who it is from; it needs {self._needed()}")

    def _scopes(self, key: str) -> frozenset[Scope]:
        """All that the patterns which fit grant together."""
        return frozenset(s for pattern, scopes in self._certificates.items() if fits(pattern, key) for s in scopes)

    def _needed(self) -> str:
        ways = []
        if self._tokens is not None:
            ways.append("the metadata 'authorization: Bearer TOKEN'")
        if self._certificates:
            ways.append("a client certificate with a SPIFFE ID, a DNS name or a common name")
        return " or ".join(ways)


def certificate_key(auth_context: Mapping[str, Collection[bytes]]) -> str | None:
    """The key of a verified client certificate: its SPIFFE ID, else its first DNS name, else its common name.

    None where the connection has none. Raises Unauthenticated for several SPIFFE IDs, of which a certificate has one
    (SPIFFE X.509-SVID, section 2).
    """
    uris = [uri for uri in map(_text, auth_context.get("peer_uri", ())) if uri.startswith("spiffe://")]
    if len(uris) > 1:
        raise Unauthenticated("the client certificate has several SPIFFE IDs; one is allowed")
    if uris:
        return uris[0]
    for kind, name in (("dns", "peer_dns"), ("cn", "x509_common_name")):
        for value in auth_context.get(name, ()):
            return f"{kind}:{_text(value)}"
    return None


def peer_key(peer: str) -> str:
    """The address of gRPC's `ipv4:10.0.0.1:50000`, `ipv6:%5B::1%5D:50000` or `unix:…`, without the port."""
    family, _, address = peer.partition(":")
    if family not in {"ipv4", "ipv6"}:
        return f"ip:{family}"
    return f"ip:{unquote(address).rpartition(':')[0].strip('[]')}"


def fits(pattern: str, key: str) -> bool:
    """Whether a pattern fits a key. `*` is a part of it, up to the next '/' (in a DNS name '.'); `**` is anything."""
    return _expression(pattern).fullmatch(key) is not None


@lru_cache(maxsize=1024)  # patterns come from the settings
def _expression(pattern: str) -> re.Pattern[str]:
    part = "[^.]+" if pattern.startswith("dns:") else "[^/]+"
    wild = {"**": ".*", "*": part}
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*|\*)", pattern)), re.S)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _bearer(metadata: Collection[tuple[str, str | bytes]]) -> str | None:
    """The bearer token of a call (RFC 6750, section 2.1); None where there is none. Raises Unauthenticated."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        return None
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("the metadata 'authorization' must be there once and be 'Bearer TOKEN'")
    return token.strip()
