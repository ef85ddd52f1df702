"""The gRPC server: its services, what every call passes, and the order in which it stops.

bind ─► SERVING … NOT_SERVING ─► keep answering for drain_s ─► send new calls elsewhere ─► stop(grace_s)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from deepmcat.v1 import admin_pb2_grpc as admin_pb_grpc
from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core import logs
from deepmcat_server import admin_servicer, port
from deepmcat_server.access import Access
from deepmcat_server.addresses import Address, parse_address
from deepmcat_server.admin import Admin
from deepmcat_server.admin_servicer import AdminServicer
from deepmcat_server.config import Settings
from deepmcat_server.gate import Gate
from deepmcat_server.health import Health
from deepmcat_server.interceptors import Observing, Remembering, Translating
from deepmcat_server.reading import Reading
from deepmcat_server.security import Security
from deepmcat_server.servicer import CategorizationServicer
from deepmcat_server.shedding import Shedding
from deepmcat_server.streams import Closing

LOG = logs.logger("server.grpc")
SERVICE = pb.DESCRIPTOR.services_by_name["CategorizationService"].full_name

REFUSING_S = 0.5
"""How long callers who have not noticed that the server drains are sent elsewhere, one by one, before the port closes.
gRPC cancels what arrives in that moment, without a reason that says to send it again."""


@asynccontextmanager
async def grpc_server(
    settings: Settings,
    servicer: CategorizationServicer,
    administrator: AdminServicer | None,
    observing: Observing,
    admin: Admin,
    closing: Closing,
    security: Security,
) -> AsyncIterator[Address]:
    """Bind and become SERVING; on leaving, stop in the order that loses no call."""
    interceptors = [
        Remembering(),
        observing,
        Translating(),
        Access(security.callers, security.quotas),
        Gate(max_streams=settings.max_streams, max_calls=settings.max_calls, closing=closing),
        Shedding(
            servicer.admission,
            lambda: [line.pipeline.forecaster for line in servicer.lines.at_work],
            servicer.metrics.refused,
        ),
        Reading(timeout_s=settings.max_timeout_s),
    ]
    server = grpc.aio.server(interceptors=interceptors, options=port.options(settings))
    probes = Health()
    pb_grpc.add_CategorizationServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(probes, server)
    services = [SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    if administrator is not None:
        admin_pb_grpc.add_AdminServiceServicer_to_server(administrator, server)  # type: ignore[no-untyped-call]
        services.append(admin_servicer.SERVICE)
    if find_spec("tritonclient") is None:
        logs.event(LOG, logging.DEBUG, "no Open Inference Protocol", reason="the extra triton is not installed")
    else:
        services.append(_add_open_inference(server, servicer, closing, ready=lambda: admin.ready))
    if settings.reflection:
        reflection.enable_server_reflection(services, server)
    listen = port.bind(server, parse_address(settings.listen), security.credentials, shared=settings.shares_port)
    await probes.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    admin.ready = True
    try:
        yield listen
    finally:
        # 1. Tell load balancers and keep answering while they look elsewhere.
        logs.event(LOG, logging.INFO, "draining", duration_s=settings.drain_s)
        admin.ready = False
        await probes.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_s)
        # 2. Take no new calls; streams stop reading and answer what they have read.
        closing.close()
        probes.end_watches()
        await asyncio.sleep(min(REFUSING_S, settings.drain_s))
        # 3. Close the port. What is open after the grace is cancelled. The batcher, then the workers, end after this.
        await server.stop(settings.grace_s)


def _add_open_inference(
    server: grpc.aio.Server, ours: CategorizationServicer, closing: Closing, *, ready: Callable[[], bool]
) -> str:
    """Register the protocol of KServe and Triton, through the same door; the service's name. Needs [triton]."""
    from deepmcat_server import open_inference
    from deepmcat_server.inference import Door

    door = Door(admission=ours.admission, quotas=ours.quotas, metrics=ours.metrics)
    servicer = open_inference.OpenInferenceServicer(
        settings=ours.settings, lines=ours.lines, door=door, closing=closing, ready=ready
    )
    open_inference.add_to_server(servicer, server)
    return open_inference.SERVICE
