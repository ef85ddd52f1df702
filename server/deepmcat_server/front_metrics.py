"""The metrics of several fronts as those of one server: each sample with the label `front`, and what there is beside.

A front is asked when somebody asks; one that does not answer in time is left out of that answer. They are asked for
Prometheus' text format, which has no exemplars: the parser of the other one does not take histograms without a sum, as
those of what can be negative are.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deepmcat_core import logs
from deepmcat_server.addresses import Address

LOG = logs.logger("server.fronts")

TIMEOUT_S = 3.0
CREATED = "_created"
"""When a counter or histogram began: part of its family, and one of its own in Prometheus' text format."""


class FrontMetrics:
    """What the supervisor counts itself, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.fronts = Gauge("deepmcat_fronts", "Processes that share the port and are SERVING.", registry=registry)
        self.wanted = Gauge("deepmcat_fronts_wanted", "Processes that are to share the port.", registry=registry)
        self.restarts = Counter(
            "deepmcat_front_restarts", "Processes that shared the port and died.", registry=registry
        )


class MergedMetrics(Collector):
    """Those of every front that is SERVING. admins: where they tell them, by number. timeout_s: to answer in."""

    def __init__(self, admins: Callable[[], Mapping[int, Address]], timeout_s: float = TIMEOUT_S) -> None:
        self._admins = admins
        self._timeout_s = timeout_s

    def collect(self) -> Iterator[Metric]:
        """Now. Blocks until all have answered, or have not in time."""
        admins = dict(self._admins())
        if not admins:
            return
        with ThreadPoolExecutor(len(admins)) as threads:
            told = dict(zip(admins, threads.map(self._families, admins, admins.values()), strict=True))
        yield from merged(told)

    def _families(self, number: int, admin: Address) -> list[Metric]:
        """Of one front; none where it does not answer as it should."""
        connection = http.client.HTTPConnection(admin.host, admin.port, timeout=self._timeout_s)
        try:
            connection.request("GET", "/metrics")
            return list(text_string_to_metric_families(connection.getresponse().read().decode()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            logs.event(LOG, logging.WARNING, "front left out", front=number, error_type=type(error).__name__)
            return []
        finally:
            connection.close()


def merged(told: Mapping[int, list[Metric]]) -> Iterator[Metric]:
    """The families of several fronts, by number: one of each name, the label `front` in every sample."""
    families: dict[str, Metric] = {}
    for number, theirs in told.items():
        for family in theirs:
            name = family.name.removesuffix(CREATED)
            name = name if name in families else family.name
            one = families.setdefault(name, Metric(name, family.documentation, family.type))
            one.samples += [sample._replace(labels={"front": str(number)} | sample.labels) for sample in family.samples]
    yield from families.values()
