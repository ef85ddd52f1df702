"""The server's life, from top to bottom.

    open the admin port ─► start decoding workers ─► warm everything ─► bind ─► SERVING
    … until a signal …
    NOT_SERVING ─► keep answering for drain_s ─► stop(grace_s) ─► batcher drains ─► workers end ─► exit 0

`serve` is the process; `run_server` is everything in it that a test needs, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from deepmcat.v1 import admin_pb2_grpc as admin_pb_grpc
from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core import logs
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.codecs import decoders
from deepmcat_core.decode_death import Cause
from deepmcat_core.decode_limits import unenforced
from deepmcat_core.decode_pool import DecodePool
from deepmcat_server import admin_servicer, audit, port, ready_files
from deepmcat_server.access import Access
from deepmcat_server.admin import Admin
from deepmcat_server.admin_servicer import AdminServicer
from deepmcat_server.admission import Admission
from deepmcat_server.artifact_watch import ArtifactWatch
from deepmcat_server.batcher import Batcher
from deepmcat_server.config import Address, Settings, parse_address
from deepmcat_server.decoding import Decoder, Pool
from deepmcat_server.gate import Gate
from deepmcat_server.health import Health
from deepmcat_server.interceptors import Observing, Translating
from deepmcat_server.lines import DEFAULT, Line, Lines
from deepmcat_server.metrics import Metrics
from deepmcat_server.observation import observe
from deepmcat_server.opening import Opened, OpenEngine, engine_opener, open_newest
from deepmcat_server.pipeline import Pipeline, batches_beside, bucket_sizes, logged_embed, out_of_memory
from deepmcat_server.reading import Reading
from deepmcat_server.rollout import Rollout
from deepmcat_server.security import Security, opened_security
from deepmcat_server.servicer import CategorizationServicer
from deepmcat_server.streams import Closing

if TYPE_CHECKING:
    from deepmcat_server.tracing import Tracing

LOG = logs.logger("server.app")
SERVICE = pb.DESCRIPTOR.services_by_name["CategorizationService"].full_name
SECOND_SIGNAL_EXIT_CODE = 130

REFUSING_S = 0.5
"""How long callers who have not noticed that the server drains are sent elsewhere, one by one, before the port closes.
gRPC cancels what arrives in that moment, without a reason that says to send it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that is SERVING: where, and its parts that a test looks at."""

    listen: Address
    admin: Address
    admission: Admission
    lines: Lines
    rollout: Rollout
    registry: CollectorRegistry

    @property
    def batcher(self) -> Batcher:
        """That of the default artifact in force."""
        return self.lines.find().batcher


async def serve(settings: Settings, opened: Opened, ready_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one exits at once."""
    if ready_file is not None:
        ready_files.clear(ready_file)
    with _stopped_by_signals() as stop:
        async with run_server(settings, opened.categorizer, first=opened) as server:
            del opened  # the server's alone, to be freed when another is in force
            _announce(server, ready_file)
            await stop.wait()
    logs.event(LOG, logging.INFO, "stopped")


@asynccontextmanager
async def run_server(
    settings: Settings,
    categorizer: Categorizer,
    *,
    first: Opened | None = None,
    open_pool: Callable[[int], Pool] | None = None,
    open_engine: OpenEngine | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[Running]:
    """Everything between a loaded artifact, which it takes over, and a server that is SERVING; leaving it drains.

    first: where the artifact came from, and others will; None: it stays. open_pool: a decoding pool of so many
    workers; None: a DecodePool. open_engine: for other artifacts; None: as the settings say. tracing: the same.
    Raises ConfigError, ArtifactError.
    """
    registry = CollectorRegistry()
    observation = observe(settings, registry, tracing)
    metrics = observation.metrics
    open_pool = open_pool or partial(_open_pool, settings, metrics)
    admission = Admission(
        max_images=settings.max_queue,
        max_bytes=settings.max_pending_bytes,
        max_frames=settings.max_pending_frames,
        budget_s=settings.queue_budget_s,
        on_refusal=metrics.refused_for,
    )
    closing = Closing()
    open_engine = open_engine or engine_opener(settings)
    others = await _open_others(settings, open_engine)
    opened = {DEFAULT: first, **others} if first else others
    paths = {name: of.path for name, of in opened.items()}
    found = {name: of.found for name, of in opened.items()}

    with Admin(parse_address(settings.admin), registry) as admin:
        async with (
            observation.until_ended(),
            opened_security(settings, metrics) as security,
            Decoder(open_pool(settings.workers), settings.workers) as decoder,
            Lines(keep=settings.keep_artifacts) as lines,
            Rollout(
                lines,
                paths,
                new_line=partial(_new_line, settings, decoder, metrics),
                warm_batches=partial(batches_beside, max_batch=settings.max_batch),
                open_engine=open_engine,
                limits=settings.limits,
                max_bytes=settings.max_artifact_bytes,
                metrics=metrics,
            ) as rollout,
        ):
            metrics.queue_depth.set_function(lambda: sum(line.batcher.depth for line in lines))
            metrics.decode_queue_depth.set_function(lambda: decoder.depth)
            metrics.inflight_images.set_function(lambda: admission.images)
            metrics.inflight_bytes.set_function(lambda: admission.size_bytes)
            metrics.inflight_frames.set_function(lambda: admission.frames)
            metrics.artifacts_loaded.set_function(lambda: len(lines))
            metrics.ready.set_function(lambda: admin.ready)
            await asyncio.gather(
                decoder.warm(),
                _begin(rollout, categorizer, opened, bucket_sizes(settings.max_batch)),
            )
            for name in lines.in_force:
                metrics.catalog_version.labels(name).set_function(partial(_catalog_version, lines, name))
            del categorizer, first, others, opened  # the lines' alone, to be freed when they end
            servicer = CategorizationServicer(
                settings=settings,
                lines=lines,
                admission=admission,
                metrics=metrics,
                closing=closing,
                quotas=security.quotas,
                decoders=decoders(),
            )
            observing = observation.interceptor(security.caller_ids)
            administrator = AdminServicer(rollout, audit.record) if settings.admin_service else None
            async with (
                _grpc_server(settings, servicer, administrator, observing, admin, closing, security) as listen,
                ArtifactWatch(paths, found, rollout.follow, poll_s=settings.artifact_poll_s),
            ):
                yield Running(
                    listen=listen,
                    admin=admin.address,
                    admission=admission,
                    lines=lines,
                    rollout=rollout,
                    registry=registry,
                )


def _catalog_version(lines: Lines, name: str) -> float:
    return lines.find(name).categorizer.catalog.version


async def _open_others(settings: Settings, open_engine: OpenEngine) -> dict[str, Opened]:
    """The artifacts with names of their own. Raises ArtifactError, ConfigError."""
    return {
        name: await asyncio.to_thread(open_newest, path, open_engine, settings.limits)
        for name, path in settings.artifacts.items()
    }


async def _begin(
    rollout: Rollout, categorizer: Categorizer, opened: Mapping[str, Opened], batches: Sequence[int]
) -> None:
    """Put the first artifact of each name in force, `categorizer` as the default."""
    sizes = {name: of.found.size_bytes for name, of in opened.items()}
    for name, each in {DEFAULT: categorizer, **{name: of.categorizer for name, of in opened.items()}}.items():
        await rollout.begin(name, each, sizes.get(name, 0), batches)


def _new_line(
    settings: Settings, decoder: Decoder, metrics: Metrics, categorizer: Categorizer, size_bytes: int
) -> Line:
    """All that answers for an artifact."""
    metrics = metrics.of_line()
    batcher = Batcher(
        logged_embed(categorizer.engine),
        max_batch=settings.max_batch,
        on_batch=metrics.batch,
        out_of_memory=out_of_memory,
    )
    pipeline = Pipeline(categorizer=categorizer, decoder=decoder, batcher=batcher, metrics=metrics)
    return Line(
        pipeline,
        batcher,
        catalog_poll_s=settings.catalog_poll_s,
        size_bytes=size_bytes,
        on_catalog=metrics.catalog,
    )


def _open_pool(settings: Settings, metrics: Metrics, workers: int) -> DecodePool:
    """Worker processes within the limits of the settings, their deaths counted and logged."""
    if missing := unenforced():
        logs.event(LOG, logging.WARNING, "decoding workers without limits", reason=" and ".join(missing))

    def on_death(cause: Cause) -> None:
        metrics.worker_died(cause)
        logs.event(LOG, logging.WARNING, "decoding worker replaced", reason=cause.value)

    return DecodePool(workers, settings.worker_limits, on_death)


@asynccontextmanager
async def _grpc_server(
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
        observing,
        Translating(),
        Access(security.callers, security.quotas),
        Gate(max_streams=settings.max_streams, max_calls=settings.max_calls, closing=closing),
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
    listen = port.bind(server, parse_address(settings.listen), security.credentials)
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


@contextmanager
def _stopped_by_signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(SECOND_SIGNAL_EXIT_CODE)
        logs.event(LOG, logging.INFO, "signal", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _announce(server: Running, ready_file: Path | None) -> None:
    """Say where, in the log and in the ready file."""
    categorizer = server.lines.find().categorizer
    for name, address in (("listening", server.listen), ("admin listening", server.admin)):
        logs.event(LOG, logging.INFO, name, address=str(address))
    logs.event(
        LOG,
        logging.INFO,
        "serving",
        artifact_id=categorizer.artifact.artifact_id,
        catalog_version=categorizer.catalog.version,
        engine=categorizer.engine.name,
        device=categorizer.engine.device,
        version=version("deepmcat"),
    )
    if ready_file is not None:
        ready_files.write(ready_file, listen=server.listen, admin=server.admin)
