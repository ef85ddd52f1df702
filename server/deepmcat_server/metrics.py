"""What the server counts and times. One object, its registry passed in; labels from closed sets only.

Never a label: a UID, a file name, the name of a category, a header value, an item_id, a caller.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal, Self, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deepmcat_core.assigner import Assignment
from deepmcat_core.decode_death import Cause
from deepmcat_server.admission import REFUSALS
from deepmcat_server.batcher import BatchReport
from deepmcat_server.measured import Counted, Left, Timed
from deepmcat_server.status import REASONS, reason_of

Response = TypeVar("Response")
Stage = Literal["receive", "decode", "queue", "encode", "assign", "reply"]
LEFT_IN: tuple[Stage, ...] = ("receive", "decode", "queue", "assign")
"""Stages in which an image can be left: waiting for the encoder and being in it are one."""

CatalogResult = Literal["ok", "refused"]
LoadResult = Literal["ok", "missing", "format", "damaged", "self_test", "changing", "no_room", "failed"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ERRORS_S = (-1, -0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DISTANCES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0)
LOAD_RESULTS: tuple[LoadResult, ...] = get_args(LoadResult)
CATALOG_RESULTS: tuple[CatalogResult, ...] = get_args(CatalogResult)
RESULTS = frozenset({"ok", "cancelled", *(reason.lower() for reason in REASONS)})

MAX_CATEGORIES = 1000
OTHER = "other"


class Metrics:
    """The metrics of one server in one registry. docs/operations.md says what each is for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.started = Counter(
            "grpc_server_started", "Calls begun.", ["grpc_service", "grpc_method"], registry=registry
        )
        self.handled = Counter(
            "grpc_server_handled", "Calls ended.", ["grpc_service", "grpc_method", "grpc_code"], registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "How long calls took.",
            ["grpc_service", "grpc_method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Counter("deepmcat_images", "Images by outcome.", ["result"], registry=registry)
        for result in RESULTS:
            self._images.labels(result)  # a rate over a series needs its zero
        self._stages = Histogram(
            "deepmcat_stage_duration_seconds", "Time by stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._by_stage = {stage: self._stages.labels(stage) for stage in get_args(Stage)}
        self._batch_size = Histogram("deepmcat_batch_size", "Frames a batch.", buckets=BATCH_SIZES, registry=registry)
        self.queue_depth = Gauge("deepmcat_queue_depth", "Images waiting for the encoder.", registry=registry)
        self._queue_wait = Histogram(
            "deepmcat_queue_wait_seconds", "How long images waited for the encoder.", buckets=SECONDS, registry=registry
        )
        self.decode_queue_depth = Gauge(
            "deepmcat_decode_queue_depth", "Images waiting for a decoding worker.", registry=registry
        )
        self.inflight_images = Gauge("deepmcat_inflight_images", "Images inside.", registry=registry)
        self.inflight_bytes = Gauge("deepmcat_inflight_bytes", "Bytes of the images inside.", registry=registry)
        self.inflight_frames = Gauge("deepmcat_inflight_frames", "Frames of the images inside.", registry=registry)
        self._refused = Counter("deepmcat_refused", "Images not let in, by why.", ["reason"], registry=registry)
        for reason in REFUSALS:
            self._refused.labels(reason)
        expired = Counter("deepmcat_expired", "Images whose time was over.", ["stage"], registry=registry)
        cancelled = Counter("deepmcat_cancelled", "Images whose caller left.", ["stage"], registry=registry)
        self._left = {stage: (expired.labels(stage), cancelled.labels(stage)) for stage in LEFT_IN}
        self.forecast_error = Histogram(
            "deepmcat_forecast_error_seconds",
            "By how much longer than foretold images took.",
            buckets=ERRORS_S,
            registry=registry,
        )
        self._batch_failures = Counter("deepmcat_batch_failures", "Batches that failed.", registry=registry)
        self._batch_reruns = Counter(
            "deepmcat_batch_reruns", "Parts of failed batches that were run again.", registry=registry
        )
        self._outliers = Counter("deepmcat_outliers", "Images unlike those the artifact knows.", registry=registry)
        self._assignments = Counter(
            "deepmcat_assignments", "Images by category id.", ["category_id"], registry=registry
        )
        self._distance = Histogram(
            "deepmcat_centroid_distance", "Distance to the nearest centroid.", buckets=DISTANCES, registry=registry
        )
        self._restarts = Counter(
            "deepmcat_decode_worker_restarts", "Decoding workers that died.", ["cause"], registry=registry
        )
        for cause in Cause:
            self._restarts.labels(cause)
        self._preamble_executables = Counter(
            "deepmcat_preamble_executables", "DICOM files with a program in their preamble.", registry=registry
        )
        self._artifact = Gauge(
            "deepmcat_artifact_info", "1 for an artifact in force.", ["artifact_id"], registry=registry
        )
        self._generation = Gauge(
            "deepmcat_artifact_generation",
            "How many artifacts have been in force under a name since the start.",
            ["artifact_name"],
            registry=registry,
        )
        self._loads = Counter("deepmcat_artifact_loads", "Artifacts loaded or refused.", ["result"], registry=registry)
        for load_result in LOAD_RESULTS:
            self._loads.labels(load_result)
        self._load_seconds = Gauge(
            "deepmcat_artifact_load_seconds", "How long loading the last artifact took.", registry=registry
        )
        self.catalog_version = Gauge(
            "deepmcat_catalog_version",
            "The catalog version in force under a name.",
            ["artifact_name"],
            registry=registry,
        )
        self._catalogs = Counter(
            "deepmcat_catalog_loads", "Newer catalog versions taken or refused.", ["result"], registry=registry
        )
        for catalog_result in CATALOG_RESULTS:
            self._catalogs.labels(catalog_result)
        self.ready = Gauge("deepmcat_ready", "1 while SERVING.", registry=registry)
        self.artifacts_loaded = Gauge("deepmcat_artifacts_loaded", "Artifacts in memory.", registry=registry)
        self.certificate_expiry = Gauge(
            "deepmcat_certificate_expiry_timestamp_seconds",
            "When the first TLS certificate in use of a kind expires.",
            ["certificate"],
            registry=registry,
        )
        self.certificate_reloads = Counter(
            "deepmcat_certificate_reloads", "Changed TLS files by what became of them.", ["result"], registry=registry
        )
        self.key_fetches = Counter(
            "deepmcat_key_fetches", "Fetches of the keys that sign tokens.", ["result"], registry=registry
        )
        for reload, fetch in (("ok", "ok"), ("refused", "failed")):
            self.certificate_reloads.labels(reload)
            self.key_fetches.labels(fetch)
        self._categories: set[str] = set()
        self._artifacts: set[str] = set()

    def of_line(self) -> Self:
        """Those of one artifact's batches and images, in the same registry: itself. Tracing tells lines apart."""
        return self

    def stage(self, stage: Stage) -> AbstractContextManager[None]:
        """Time a stage, also when it fails."""
        return Timed(self._by_stage[stage])

    def image(self, images: int = 1) -> AbstractContextManager[None]:
        """Count one image, or several that go together, by how it ends."""
        return Counted(self._images.labels, images)

    def refused(self, error: Exception) -> None:
        """Count one image that did not get in."""
        self._images.labels(reason_of(error).lower()).inc()

    def refused_for(self, reason: str) -> None:
        """One was not let in, for one of REFUSALS."""
        self._refused.labels(reason).inc()

    def leaving(self, stage: Stage, deadline: float) -> AbstractContextManager[None]:
        """Count an image that is left in this stage: its time was over (by the loop's clock), or its caller went."""
        return Left(*self._left[stage], deadline)

    def replying(self, write: Callable[[Response], Awaitable[object]]) -> Callable[[Response], Awaitable[object]]:
        """`write`, timed: encoding the answer of a stream, and waiting for a caller who reads slowly."""
        replies = self._stages.labels("reply")

        async def timed(response: Response) -> None:
            started = time.perf_counter()
            await write(response)
            replies.observe(time.perf_counter() - started)

        return timed

    def batch(self, report: BatchReport) -> None:
        """A batch has run."""
        self._batch_failures.inc(report.failed)
        self._batch_reruns.inc(report.again)
        self._batch_size.observe(report.frames)
        self._by_stage["encode"].observe(report.encode_s)
        for wait_s in report.waits_s:
            self._by_stage["queue"].observe(wait_s)
            self._queue_wait.observe(wait_s)

    def answer(self, assignment: Assignment) -> None:
        """An image was assigned."""
        self._assignments.labels(self._bounded(assignment.category_id)).inc()
        self._distance.observe(assignment.distance)
        if assignment.outlier:
            self._outliers.inc()

    def worker_died(self, cause: Cause) -> None:
        """A decoding worker has died and is being replaced. From any thread."""
        self._restarts.labels(cause).inc()

    def preamble_executable(self) -> None:
        """A DICOM file came with a program in its preamble, whatever else it is."""
        self._preamble_executables.inc()

    def artifacts(self, in_force: Mapping[str, str]) -> None:
        """These are in force from now on, by name. Others go to 0: a gauge's label cannot be taken back everywhere."""
        self._artifacts |= set(in_force.values())
        for artifact_id in self._artifacts:
            self._artifact.labels(artifact_id).set(artifact_id in in_force.values())

    def switched(self, name: str) -> None:
        """Another artifact is in force under a name: from the configuration, so that the label has a bound."""
        self._generation.labels(name).inc()

    def loaded(self, result: LoadResult, duration_s: float) -> None:
        """An artifact was loaded, or refused."""
        self._loads.labels(result).inc()
        self._load_seconds.set(duration_s)

    def catalog(self, result: CatalogResult) -> None:
        """A newer catalog version is in force, or was refused."""
        self._catalogs.labels(result).inc()

    def _bounded(self, category_id: str) -> str:
        """Catalogs grow and ids are never reused, so the label has a bound of its own."""
        if category_id not in self._categories:
            if len(self._categories) >= MAX_CATEGORIES:
                return OTHER
            self._categories.add(category_id)
        return category_id
