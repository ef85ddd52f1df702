"""What is seen of a server: metrics always, an access log and traces as the settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector

from deepmcat_server.child_processes import ChildProcesses
from deepmcat_server.config import Settings
from deepmcat_server.interceptors import Observing
from deepmcat_server.metrics import Metrics

if TYPE_CHECKING:
    from deepmcat_server.tracing import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The metrics of a server, and what looks at its calls."""

    metrics: Metrics
    tracing: Tracing | None
    access_log: bool

    def interceptor(self, caller_id: Callable[[str], str]) -> Observing:
        """The outermost. caller_id: what stands for a caller in logs and traces."""
        if self.tracing is None:
            return Observing(self.metrics, caller_id, access_log=self.access_log)
        return Observing(self.metrics, caller_id, begin_trace=self.tracing.begin, access_log=self.access_log)

    @asynccontextmanager
    async def until_ended(self) -> AsyncIterator[None]:
        """Send the last spans when everything that makes some has ended."""
        try:
            yield
        finally:
            if self.tracing is not None:
                await self.tracing.flush()


def observe(settings: Settings, registry: CollectorRegistry, tracing: Tracing | None = None) -> Observation:
    """As the settings say. tracing: instead of theirs. Where nothing is traced, nothing ever asks whether it is."""
    ProcessCollector(registry=registry)
    registry.register(ChildProcesses())
    tracing = tracing or _open_tracing(settings)
    if tracing is None:
        return Observation(metrics=Metrics(registry), tracing=None, access_log=settings.access_log)
    from deepmcat_server.traced_metrics import TracedMetrics

    return Observation(metrics=TracedMetrics(registry), tracing=tracing, access_log=settings.access_log)


def _open_tracing(settings: Settings) -> Tracing | None:
    if settings.trace_endpoint is None:
        return None
    from deepmcat_server.tracing import to_collector

    return to_collector(settings.trace_endpoint, sample=settings.trace_sample, images=settings.trace_images)
