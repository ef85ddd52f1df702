"""What makes a connection private, and what says who is calling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepmcat_client.errors import InvalidRequest, Unauthenticated
from deepmcat_client.targets import is_local

if TYPE_CHECKING:
    import grpc

Token = str | Callable[[], str]
"""A bearer token, or what gives the one in force; that is asked for each call, on a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a connection is encrypted. Files in PEM, read again for every new connection.

    ca: who signs servers; None: those whom the system trusts. cert and key: of this client, for mutual TLS.
    server_name: the name in the server's certificate, where it is not the one in the address.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        """Refuse half of a pair."""
        if (self.cert is None) != (self.key is None):
            raise InvalidRequest("a client certificate and its key go together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises InvalidRequest for a file that cannot be read."""
        import grpc  # not needed to say how to reach a server, which `deepmcat doctor` does where it is missing

        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Gives what a file holds now: tokens that an orchestrator puts there are replaced while we run."""

    path: Path

    def __call__(self) -> str:
        """The token. Raises Unauthenticated, without the file's content in the message."""
        try:
            token = self.path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise Unauthenticated(f"the token in {self.path} cannot be read: {why}") from None
        if not token:
            raise Unauthenticated(f"the token file {self.path} is empty")
        return token


def check_token(token: Token | None, tls: Tls | None, targets: Iterable[str]) -> None:
    """Refuse to show a token to whoever listens on the way. Raises InvalidRequest."""
    if token is None or tls is not None:
        return
    for target in targets:
        if not is_local(target):
            raise InvalidRequest(f"a token goes to {target} only over TLS (Client(tls=Tls(…)), or --tls)")


def authorization(token: Token) -> tuple[tuple[str, str], ...]:
    """The metadata of a call. Raises what the token's source raises, and Unauthenticated for what is no token."""
    value = token if isinstance(token, str) else token()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise Unauthenticated("the token is empty or has characters that no bearer token has (RFC 6750)")
    return (("authorization", f"Bearer {value}"),)


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise InvalidRequest(f"{path} is not PEM; TLS needs certificates and keys in PEM")
    return content
