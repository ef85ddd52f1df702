"""Channels to one or more servers: calls are spread over them, failing ones are left alone for a while.

A channel is one HTTP/2 connection to each server behind its target, with one flow-control window. It is replaced after
a few minutes: the name is looked up again, so that servers that have come since get calls, and certificates are read
again. Calls under way end on the channel on which they began.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client.errors import TryAgain
from deepmcat_client.security import Tls, Token, authorization, check_token

REPLACED_AFTER_S = 300.0
AVOIDED_S, AVOIDED_MOST_S = 1.0, 30.0  # after the first failure in a row, and after many

_OPTIONS = (
    ("grpc.enable_retries", 0),  # retry.py retries, and knows our reasons
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.use_local_subchannel_pool", 1),  # two channels to one target are two connections
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 2**20),  # the catalog of an artifact with many categories
    # What a firewall or a power cut has ended silently is noticed, also while nobody calls.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """keepalive_s: how often a silent connection is tried; it is dead after half as long again."""

    targets: tuple[str, ...]
    tls: Tls | None
    token: Token | None
    channels: int
    keepalive_s: float


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for a channel. failures: in a row, of calls through it."""

    target: str
    connection: Connection | None = None
    failures: int = 0
    avoided_until: float = 0.0


@dataclass(slots=True, eq=False)
class Connection:
    """An open channel. calls: how many are open on it."""

    slot: _Slot
    channel: grpc.aio.Channel
    replaced_at: float
    stub: Any = field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        """Make the stub."""
        new_stub = cast("Callable[[grpc.aio.Channel], Any]", pb_grpc.CategorizationServiceStub)
        self.stub = new_stub(self.channel)

    @property
    def target(self) -> str:
        """Where it goes."""
        return self.slot.target


class Connections:
    """All channels of a client; close it with `aclose`. Raises InvalidRequest for settings that cannot be."""

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        replaced_after_s: float = REPLACED_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        check_token(settings.token, settings.tls, settings.targets)
        self._settings = settings
        self._replaced_after_s = replaced_after_s
        self._clock = clock
        self._rng = rng or random.Random()
        self._slots = [_Slot(target) for _ in range(settings.channels) for target in settings.targets]
        self._rng.shuffle(self._slots)  # many clients with one list of servers begin at different ones
        self._retired: set[Connection] = set()
        for slot in self._slots:
            slot.connection = self._open(slot)

    def __len__(self) -> int:
        """How many channels."""
        return len(self._slots)

    async def aclose(self) -> None:
        """Close all channels; calls under way are cancelled."""
        connections = [*self._retired, *(slot.connection for slot in self._slots if slot.connection is not None)]
        await asyncio.gather(*(connection.channel.close(None) for connection in connections))

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Connection]:
        """A connection for one call: that with the fewest calls of those that do not fail."""
        slot = self._choose()
        connection = await self._current(slot)
        connection.calls += 1
        try:
            yield connection
        finally:
            connection.calls -= 1
            await self._close_retired([connection])

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries. Raises Unauthenticated, and what the token's source raises."""
        token, traced = self._settings.token, _trace_context()
        if token is None:
            return traced
        shown = authorization(token) if isinstance(token, str) else await asyncio.to_thread(authorization, token)
        return shown + traced

    def answered(self, connection: Connection) -> None:
        """Say that the server behind a connection answers."""
        connection.slot.failures, connection.slot.avoided_until = 0, 0.0

    def failed(self, connection: Connection, error: TryAgain) -> None:
        """Say that it does not, or asks for time: other channels, where there are any, come first for a while."""
        slot = connection.slot
        slot.failures += 1
        pause_s = min(AVOIDED_MOST_S, AVOIDED_S * 2 ** min(slot.failures - 1, 10))
        slot.avoided_until = self._clock() + max(pause_s, min(error.retry_after_s or 0.0, AVOIDED_MOST_S))

    def _choose(self) -> _Slot:
        now = self._clock()
        usable = [slot for slot in self._slots if slot.avoided_until <= now]
        if not usable:
            return min(self._slots, key=lambda slot: slot.avoided_until)
        chosen = min(usable, key=_open_calls)
        self._slots.remove(chosen)
        self._slots.append(chosen)  # of those with as few calls it is the last next time
        return chosen

    async def _current(self, slot: _Slot) -> Connection:
        """The slot's connection, a new one where it is old."""
        connection = slot.connection
        if connection is None or self._clock() >= connection.replaced_at:
            slot.connection = self._open(slot)
            if connection is not None:
                self._retired.add(connection)
                await self._close_retired([connection])
        assert slot.connection is not None
        return slot.connection

    async def _close_retired(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            if connection in self._retired and not connection.calls:
                self._retired.discard(connection)
                await connection.channel.close(None)

    def _open(self, slot: _Slot) -> Connection:
        keepalive_ms = round(self._settings.keepalive_s * 1000)
        options: list[tuple[str, Any]] = [
            *_OPTIONS,
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
            # gRPC sends pings of its own to measure the line; while one is unanswered it sends none for keepalive, and
            # gives that one a minute.
            ("grpc.http2.ping_timeout_ms", keepalive_ms // 2),
        ]
        # Spread, so that the clients that a restart has brought together do not stay together.
        replaced_at = self._clock() + self._replaced_after_s * self._rng.uniform(0.8, 1.2)
        tls = self._settings.tls
        if tls is None:
            return Connection(slot, grpc.aio.insecure_channel(slot.target, options=options), replaced_at)
        if tls.server_name:
            options += [
                ("grpc.ssl_target_name_override", tls.server_name),
                ("grpc.default_authority", tls.server_name),
            ]
        return Connection(slot, grpc.aio.secure_channel(slot.target, tls.credentials(), options=options), replaced_at)


def _open_calls(slot: _Slot) -> int:
    return 0 if slot.connection is None else slot.connection.calls


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The caller's current span as W3C Trace Context, where the caller traces with OpenTelemetry; else nothing."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
