"""How many calls are open at once. What one more of a kind would cost is refused before anything of it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server.errors import ServerBusy
from deepmcat_server.interceptors import OWN_PACKAGES, Around, Context

MAX_PROBES = 512
"""Calls of health and reflection at once: load-balancing clients keep a Watch open each. A bound of their own, so that
a full server still answers them."""

STREAMS = frozenset(
    method.name for method in pb.DESCRIPTOR.services_by_name["CategorizationService"].methods if method.client_streaming
) | {"ModelStreamInfer"}

PROBES = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""The health of the Open Inference Protocol."""

Kind = Literal["streams", "calls", "probes"]


class Gate(Around):
    """Bounds the calls that are open at once, kind by kind.

    gRPC's own `maximum_concurrent_rpcs` has one bound for all, probes too, and answers without a reason.
    """

    def __init__(self, *, max_streams: int, max_calls: int) -> None:
        self._bounds: dict[Kind, int] = {"streams": max_streams, "calls": max_calls, "probes": MAX_PROBES}
        self._open: Counter[Kind] = Counter()

    @asynccontextmanager
    async def around(self, service: str, method: str, context: Context) -> AsyncIterator[None]:
        """A place for the call. Raises ServerBusy."""
        kind = _kind(service, method)
        if self._open[kind] >= self._bounds[kind]:
            raise ServerBusy(f"the server has {self._open[kind]} {kind} open, as many as it takes; try again later")
        self._open[kind] += 1
        try:
            yield
        finally:
            self._open[kind] -= 1


def _kind(service: str, method: str) -> Kind:
    if not service.startswith(OWN_PACKAGES) or method in PROBES:
        return "probes"
    return "streams" if method in STREAMS else "calls"
