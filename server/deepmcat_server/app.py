"""The server's life, from top to bottom.

    open the admin port ─► start decoding workers ─► warm everything ─► bind ─► SERVING
    … until a signal …
    NOT_SERVING ─► keep answering for drain_s ─► stop(grace_s) ─► batcher drains ─► workers end ─► exit 0

`serve` is the process; `run_server` is everything in it that a test needs, too.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from deepmcat_core import logs
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.codecs import decoders
from deepmcat_core.decode_death import Cause
from deepmcat_core.decode_limits import unenforced
from deepmcat_core.decode_pool import DecodePool
from deepmcat_server import audit, ready_files
from deepmcat_server.addresses import Address, parse_address
from deepmcat_server.admin import Admin
from deepmcat_server.admin_servicer import AdminServicer
from deepmcat_server.admission import Admission
from deepmcat_server.artifact_watch import ArtifactWatch
from deepmcat_server.batcher import Batcher
from deepmcat_server.config import Settings
from deepmcat_server.decoding import Decoder, Pool
from deepmcat_server.grpc_server import grpc_server
from deepmcat_server.lines import DEFAULT, Line, Lines
from deepmcat_server.metrics import Metrics
from deepmcat_server.observation import observe
from deepmcat_server.opening import Opened, OpenEngine, engine_opener, open_newest
from deepmcat_server.pipeline import Pipeline, batches_beside, bucket_sizes, logged_embed, out_of_memory
from deepmcat_server.pulse import Pulse
from deepmcat_server.rollout import Rollout
from deepmcat_server.security import opened_security
from deepmcat_server.servicer import CategorizationServicer
from deepmcat_server.signals import end_at_once, stopped_by_signals
from deepmcat_server.streams import Closing

if TYPE_CHECKING:
    from deepmcat_server.tracing import Tracing

LOG = logs.logger("server.app")


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
    """Serve until SIGTERM or SIGINT; a second one exits at once.

    Where the port is shared a second one does nothing: a service manager may send one to every process, and the
    supervisor passes its own on. A supervisor that gets two does not ask.
    """
    _forget_what_stays()
    if ready_file is not None:
        ready_files.clear(ready_file)
    with stopped_by_signals(_ignore_signal if settings.shares_port else end_at_once) as stop:
        async with run_server(settings, opened.categorizer, first=opened) as server:
            del opened  # the server's alone, to be freed when another is in force
            _announce(server, ready_file, tell_admin=not settings.shares_port)
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

    pulse = Pulse()
    with Admin(parse_address(settings.admin), registry, lambda: pulse.silence_s) as admin:
        async with (
            pulse,
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
                grpc_server(settings, servicer, administrator, observing, admin, closing, security) as listen,
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
        logged_embed(categorizer.embed),
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


def _forget_what_stays() -> None:
    """Have the garbage collector never look at modules and classes again: a tenth of the processor time of a call.

    What is made from now on (lines, tasks, calls) is collected as ever.
    """
    gc.collect()
    gc.freeze()


def _ignore_signal() -> None:
    """It drains already."""


def _announce(server: Running, ready_file: Path | None, *, tell_admin: bool) -> None:
    """Say where, in the log and in the ready file. tell_admin: in the log too; a front's is its supervisor's alone."""
    categorizer = server.lines.find().categorizer
    logs.event(LOG, logging.INFO, "listening", address=str(server.listen))
    if tell_admin:
        logs.event(LOG, logging.INFO, "admin listening", address=str(server.admin))
    logs.event(
        LOG,
        logging.INFO,
        "serving",
        artifact_id=categorizer.artifact.artifact_id,
        catalog_version=categorizer.catalog.version,
        engine=categorizer.engine.name,
        device=categorizer.engine.device,
        precision=categorizer.engine.precision,
        version=version("deepmcat"),
    )
    if ready_file is not None:
        ready_files.write(ready_file, listen=server.listen, admin=server.admin)
