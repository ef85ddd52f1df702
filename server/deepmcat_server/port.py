"""The gRPC port: where it is bound, with which certificate, and within which limits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from deepmcat_core.errors import ConfigError
from deepmcat_server.addresses import Address
from deepmcat_server.config import Settings
from deepmcat_server.gate import MAX_PROBES

HANDSHAKE_TIMEOUT_S = 20


def options(settings: Settings) -> list[tuple[str, int]]:
    """The limits that gRPC holds. Those of a connection, unless said otherwise."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # More than the first is refused at random up to the second, which is refused always (gRFC L100).
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        # One connection queues what is more. Above the gate's bounds, so that its refusals reach the caller.
        ("grpc.max_concurrent_streams", 2 * (settings.max_streams + settings.max_calls + MAX_PROBES)),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),  # of the port
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
        ("grpc.so_reuseport", int(settings.shares_port)),  # else a second server is a mistake, no sharer of calls
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        *_ages(settings),
    ]


def _ages(settings: Settings) -> list[tuple[str, int]]:
    """How old a connection gets: gRFC A9. gRPC adds a tenth of it at random, so that not all come back at once."""
    if not settings.max_connection_age_s:
        return []
    return [
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_s * 1000)),
    ]


def bind(
    server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None, *, shared: bool = False
) -> Address:
    """Bind `address`, with TLS where there are credentials; the address with its actual port. Raises ConfigError.

    shared: with others that share it. Of them gRPC has to be told, too (`options`).
    """
    with _told(address):
        with _bound(address, shared=shared):  # gRPC says why in a line of its own on stderr, and in no exception
            pass
        if credentials is None:
            return Address(address.host, server.add_insecure_port(str(address)))
        return Address(address.host, server.add_secure_port(str(address), credentials))


@contextmanager
def reserved(address: Address) -> Iterator[Address]:
    """Keep a port for those who share it; the address with its actual port. Raises ConfigError.

    Bound and never listened on: no connection comes here, and port 0 stays the one that it has become.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("fronts above 1 need SO_REUSEPORT, which this platform does not have: leave fronts at 1")
    with _told(address):
        held = _alone(address)
    with held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # from now on with those who share it
        yield Address(address.host, int(held.getsockname()[1]))


def _alone(address: Address) -> socket.socket:
    """A socket there, beside nobody else, be it one who shares, and beside no second one of this kind.

    Two that may be bound anew (SO_REUSEADDR) do not see each other before one listens, so that this one may not, or for
    no longer than it takes: while connections of a server before are in TIME_WAIT the port cannot be had otherwise.
    """
    try:
        return _bound(address, shared=False, anew=False)
    except OSError:
        alone = _bound(address, shared=False)
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return alone


@contextmanager
def _told(address: Address) -> Iterator[None]:
    """What goes wrong, in a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = f": {error.strerror.lower()}" if isinstance(error, OSError) and error.strerror else ""
        raise ConfigError(f"cannot listen on {address}{why}; choose another address with --listen") from error


def _bound(address: Address, *, shared: bool, anew: bool = True) -> socket.socket:
    """A socket there that does not listen.

    shared: beside others that are bound so (socket(7), SO_REUSEPORT). anew: beside what is left of one before
    (SO_REUSEADDR).
    """
    family, kind, *_, target = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(anew))
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(target)
    except OSError:
        bound.close()
        raise
    return bound
