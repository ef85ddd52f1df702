"""grpc.health.v1 for probes and load balancers."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2


class Health(health.aio.HealthServicer):  # type: ignore[misc, name-defined]  # untyped
    """The standard servicer, whose watches end when the server stops instead of using up its grace."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """As the standard servicer, until `end_watches`."""
        watch = asyncio.create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait([watch])
        finally:
            self._watches.discard(watch)
            watch.cancel()

    def end_watches(self) -> None:
        """End them all: NOT_SERVING has been sent."""
        for watch in self._watches:
            watch.cancel()
