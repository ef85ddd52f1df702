"""How many calls are open at once, and how many of them are one caller's.

What one more of a kind would cost is refused before anything of it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server.errors import ServerBusy, ServerClosing
from deepmcat_server.interceptors import CALL, OWN_PACKAGES, Around, Context
from deepmcat_server.room import SHARE
from deepmcat_server.streams import Closing

MAX_PROBES = 512
"""Calls of health and reflection at once: load-balancing clients keep a Watch open each. A bound of their own, so that
a full server still answers them."""

STREAMS = frozenset(
    method.name for method in pb.DESCRIPTOR.services_by_name["CategorizationService"].methods if method.client_streaming
) | {"ModelStreamInfer"}

PROBES = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""The health of the Open Inference Protocol."""

Kind = Literal["streams", "calls", "probes"]


SHARED: frozenset[Kind] = frozenset({"streams", "calls"})
"""What callers share as they share room for images (room.py). Probes come from few addresses, for everybody."""


class Gate(Around):
    """Bounds the calls that are open at once, kind by kind, and leaves some for those who have none.

    gRPC's own `maximum_concurrent_rpcs` has one bound for all, probes too, and answers without a reason.
    """

    def __init__(self, *, max_streams: int, max_calls: int, closing: Closing) -> None:
        """closing: then nobody gets a place but probes."""
        self._closing = closing
        self._bounds: dict[Kind, int] = {"streams": max_streams, "calls": max_calls, "probes": MAX_PROBES}
        self._open: Counter[Kind] = Counter()
        self._callers: Counter[tuple[Kind, str]] = Counter()

    @asynccontextmanager
    async def around(self, service: str, method: str, context: Context) -> AsyncIterator[None]:
        """A place for the call. Raises ServerBusy, ServerClosing."""
        kind, caller = _kind(service, method), CALL.get().caller
        self._check(kind, caller)
        self._count(kind, caller, 1)
        try:
            yield
        finally:
            self._count(kind, caller, -1)

    def _check(self, kind: Kind, caller: str) -> None:
        """Raises ServerBusy where there is no place, or none for this caller."""
        if kind in SHARED and self._closing.closed:
            raise ServerClosing("the server is shutting down; send this elsewhere")
        free, own = self._bounds[kind] - self._open[kind], self._callers[kind, caller]
        if free <= 0:
            raise ServerBusy(f"the server has {self._open[kind]} {kind} open, as many as it takes; try again later")
        if kind in SHARED and own >= SHARE * free:
            raise ServerBusy(
                f"this caller has {own} {kind} open, as many as it may while {free} are free for others; "
                "end one, or try again later"
            )

    def _count(self, kind: Kind, caller: str, change: int) -> None:
        self._open[kind] += change
        self._callers[kind, caller] += change
        if not self._callers[kind, caller]:
            del self._callers[kind, caller]  # callers come and go


def _kind(service: str, method: str) -> Kind:
    if not service.startswith(OWN_PACKAGES) or method in PROBES:
        return "probes"
    return "streams" if method in STREAMS else "calls"
