"""deepmcat.v1.CategorizationService: what a call means, in terms of the pipeline."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import grpc.aio

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core import logs
from deepmcat_core.errors import DeepmcatError
from deepmcat_core.frame import ImageSource, RawPlane
from deepmcat_server import wire
from deepmcat_server.admission import Admission, Arrival, Permit
from deepmcat_server.config import Settings
from deepmcat_server.errors import InvalidRequest, QuotaExceeded, ServerBusy, ServerClosing
from deepmcat_server.in_time import TOO_LATE, in_time
from deepmcat_server.interceptors import CALL, LOG
from deepmcat_server.lines import Lines
from deepmcat_server.metrics import Metrics
from deepmcat_server.quotas import Quotas
from deepmcat_server.requests import MAX_ITEM_ID_BYTES, Announced, Item, read_item
from deepmcat_server.status import outcome_of, to_status
from deepmcat_server.streams import Closing, Inbox, answer_in_order
from deepmcat_server.uploads import MAX_CHUNK_BYTES, StreamInbox, Upload, skip_chunks

EOF: object = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs

Context = Any  # grpc.aio.ServicerContext, generic in the messages of each method


class CategorizationServicer(pb_grpc.CategorizationServiceServicer):
    """Answers calls. Errors leave as exceptions; the translating interceptor ends the call with their status."""

    def __init__(
        self,
        *,
        settings: Settings,
        lines: Lines,
        admission: Admission,
        metrics: Metrics,
        closing: Closing,
        quotas: Quotas,
        decoders: Sequence[str],
    ) -> None:
        self.settings = settings
        self.lines = lines
        self.admission = admission
        self.metrics = metrics
        # Announced images have room before they are there. Half of it at most, so that a slow line never has it all.
        self.uploads = Admission(max_images=settings.max_queue, max_bytes=settings.max_pending_bytes // 2)
        self.quotas = quotas
        self._image_limits = settings.limits
        self._closing = closing
        self._decoders = tuple(decoders)

    async def Categorize(self, request: pb.CategorizeRequest, context: Context) -> pb.CategorizeResponse:  # noqa: N802
        """One image; refused at once where the server is full."""
        CALL.get().images = 1
        with self.metrics.image():
            with self.metrics.stage("receive"):
                item = self.read_item(request)
                if isinstance(item.content, Announced):
                    raise InvalidRequest("chunked images are for CategorizeStream", "image.chunked")
                self.quotas.take(CALL.get().caller, item.size_bytes)
                permit = self.admission.enter_now(self.arrival(item, _deadline(context, item)))
            del request  # it holds the image a second time
            with permit:
                answer = await self.answer(item, item.content, permit)
        return pb.CategorizeResponse(item_id=item.item_id, categorization=answer)

    async def CategorizeStream(self, request_iterator: object, context: Context) -> None:  # noqa: N802
        """Many images on one call, answered in the order of arrival."""
        inbox: StreamInbox = Inbox(context.read, EOF, self._closing)
        stream = _Stream(self, inbox)
        write = self.metrics.replying(context.write)
        await answer_in_order(stream.next_task, write, max_in_flight=self.settings.max_stream_in_flight)
        if inbox.cut_off:
            raise ServerClosing("the server is shutting down; send the images that have no answer elsewhere")

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> pb.GetArtifactResponse:  # noqa: N802
        """What is being served."""
        categorizer = self.lines.find(request.artifact_id).categorizer
        return pb.GetArtifactResponse(
            artifact=wire.artifact(categorizer.artifact, categorizer.catalog),
            limits=_limits(self.settings),
            engine=categorizer.engine.name,
            device=categorizer.engine.device,
            server_version=version("deepmcat"),
            decoders=self._decoders,
            precision=categorizer.engine.precision,
        )

    async def ListCategories(  # noqa: N802
        self, request: pb.ListCategoriesRequest, context: Context
    ) -> pb.ListCategoriesResponse:
        """The catalog in force."""
        line = self.lines.find(request.artifact_id)
        catalog = line.categorizer.catalog
        return pb.ListCategoriesResponse(
            categories=wire.categories(catalog), artifact_id=line.artifact_id, catalog_version=catalog.version
        )

    def read_item(self, request: pb.CategorizeRequest) -> Item:
        """The request, checked. Raises InvalidRequest, ArtifactNotFound, ImageTooLarge."""
        item = read_item(request, limits=self._image_limits)
        CALL.get().size_bytes += item.size_bytes
        self.lines.find(item.artifact)  # refused before it is admitted
        return item

    def arrival(self, item: Item, deadline: float) -> Arrival:
        """An item at the door. deadline: of its answer, by the loop's clock."""
        pipeline = self.lines.find(item.artifact).pipeline
        frames = 1 if isinstance(item.content, RawPlane) else pipeline.most_frames(item.frames)
        return Arrival(
            caller=CALL.get().caller,
            size_bytes=item.size_bytes,
            frames=frames,
            cost=frames,
            deadline=deadline,
            forecaster=pipeline.forecaster,
            whole=not isinstance(item.content, Announced),
            decodes=not pipeline.reads_at_once(item.content),
        )

    async def answer(self, item: Item, source: ImageSource, permit: Permit) -> pb.Categorization:
        """The answer for an admitted item. Raises ServerBusy where its time runs out before."""
        async with in_time(permit, self.metrics.forecast_error.observe):
            with self.lines.find(item.artifact).use() as line:  # whatever comes into force meanwhile
                answer = await line.pipeline.categorize(source, permit=permit, frames=item.frames, top_k=item.top_k)
        return wire.categorization(answer, want_embedding=item.want_embedding)


class _Stream:
    """One call of CategorizeStream: makes a task of each image it reads."""

    def __init__(self, servicer: CategorizationServicer, inbox: StreamInbox) -> None:
        self._servicer = servicer
        self._settings = servicer.settings
        self._inbox = inbox
        self._to_skip = 0  # bytes of an image that was refused when it was announced

    async def next_task(self) -> asyncio.Task[pb.CategorizeStreamResponse] | None:
        """The task that answers the next image; None at the end. Raises InvalidRequest, which ends the call."""
        if not await skip_chunks(self._inbox, self._to_skip, chunk_timeout_s=self._settings.chunk_timeout_s):
            return None
        self._to_skip = 0
        message = await self._inbox.next()
        if message is None:
            return None
        if message.WhichOneof("message") != "item":
            raise InvalidRequest("a message is neither an image nor a chunk of one announced before it", "message")
        arrived, request = asyncio.get_running_loop().time(), message.item
        CALL.get().images += 1
        with self._servicer.metrics.stage("receive"):
            try:
                item = self._servicer.read_item(request)
            except DeepmcatError as error:
                if request.image.WhichOneof("content") == "chunked":
                    self._to_skip = request.image.chunked.size_bytes
                return self._refused(request.item_id, error)
            del message, request  # they hold the image a second time
            return await self._receive(item, arrived + self._timeout_s(item))

    async def _receive(self, item: Item, deadline: float) -> asyncio.Task[pb.CategorizeStreamResponse] | None:
        """The task for an item, as soon as there is room for it. deadline: of its answer, by the loop's clock."""
        try:
            await self._servicer.quotas.wait(CALL.get().caller, item.size_bytes, deadline)
        except QuotaExceeded as error:
            if isinstance(item.content, Announced):
                self._to_skip = item.size_bytes
            return self._refused(item.item_id, error)
        if isinstance(item.content, Announced):
            return await self._upload(item, deadline)
        try:
            permit = await self._enter(self._servicer.admission, self._servicer.arrival(item, deadline), deadline)
        except ServerBusy as error:
            return self._refused(item.item_id, error)
        return self._begin(item, item.content, permit)

    async def _upload(self, item: Item, deadline: float) -> asyncio.Task[pb.CategorizeStreamResponse] | None:
        """The task for an announced item, as soon as all of it is there."""
        upload = Upload(item.size_bytes)
        announced = Arrival(caller=CALL.get().caller, size_bytes=item.size_bytes)
        try:
            with await self._enter(self._servicer.uploads, announced, deadline), ExitStack() as room:
                arrival = self._servicer.arrival(item, deadline)
                permit = await self._enter(self._servicer.admission, arrival, deadline)
                room.callback(permit.release)
                source = await upload.read(
                    self._inbox, chunk_timeout_s=self._settings.chunk_timeout_s, deadline=deadline
                )
                if source is None:
                    return None
                room.pop_all()  # from here on the task gives the room back
                return self._begin(item, source, permit)
        except (ServerBusy, TimeoutError) as error:
            self._to_skip = upload.missing
            return self._refused(item.item_id, error if isinstance(error, ServerBusy) else ServerBusy(TOO_LATE))

    async def _enter(self, admission: Admission, arrival: Arrival, deadline: float) -> Permit:
        """Room for the item: waiting here is the flow control. Raises ServerBusy where its time runs out first."""
        try:
            with self._servicer.metrics.leaving("receive", deadline):
                if (permit := admission.enter_in_turn(arrival)) is not None:
                    return permit
                async with asyncio.timeout_at(deadline):
                    return await admission.enter(arrival)
        except TimeoutError as error:
            raise ServerBusy(TOO_LATE) from error

    def _begin(self, item: Item, source: ImageSource, permit: Permit) -> asyncio.Task[pb.CategorizeStreamResponse]:
        task = asyncio.create_task(self._answer(item, source, permit))
        task.add_done_callback(lambda _: permit.release())  # also where it is cancelled before it begins
        return task

    async def _answer(self, item: Item, source: ImageSource, permit: Permit) -> pb.CategorizeStreamResponse:
        try:
            with self._servicer.metrics.image():
                answer = await self._servicer.answer(item, source, permit)
        except Exception as error:  # noqa: BLE001  # one image never ends a stream: its error is its answer
            return _error(item.item_id, error)
        return pb.CategorizeStreamResponse(item_id=item.item_id, categorization=answer)

    def _refused(self, item_id: str, error: DeepmcatError) -> asyncio.Task[pb.CategorizeStreamResponse]:
        self._servicer.metrics.refused(error)
        return asyncio.create_task(_ready(_error(item_id, error)))

    def _timeout_s(self, item: Item) -> float:
        wanted_s = item.timeout_ms / 1000 or self._settings.default_timeout_s
        return min(wanted_s, self._settings.max_timeout_s)


def _deadline(context: Context, item: Item) -> float:
    """By the loop's clock: of the call, or what its options allow where that is sooner."""
    remaining_s: float | None = context.time_remaining()
    allowed_s = item.timeout_ms / 1000 or math.inf
    return asyncio.get_running_loop().time() + min(allowed_s, math.inf if remaining_s is None else remaining_s)


async def _ready(response: pb.CategorizeStreamResponse) -> pb.CategorizeStreamResponse:
    return response


def _error(item_id: str, error: Exception) -> pb.CategorizeStreamResponse:
    if outcome_of(error) is None:
        logs.event(LOG, logging.ERROR, "internal error", method="CategorizeStream", exc_info=True)
    return pb.CategorizeStreamResponse(item_id=item_id, error=to_status(error))


def _limits(settings: Settings) -> pb.Limits:
    return pb.Limits(
        max_message_bytes=settings.max_message_bytes,
        max_image_bytes=settings.max_image_bytes,
        max_chunk_bytes=MAX_CHUNK_BYTES,
        max_frames=settings.max_frames,
        max_side=settings.max_side,
        max_stream_in_flight=settings.max_stream_in_flight,
        max_queue=settings.max_queue,
        max_item_id_bytes=MAX_ITEM_ID_BYTES,
        default_timeout_ms=round(min(settings.default_timeout_s, settings.max_timeout_s) * 1000),
        max_timeout_ms=round(settings.max_timeout_s * 1000),
        max_streams=settings.max_streams,
        max_calls=settings.max_calls,
        decode_timeout_ms=round(settings.decode_timeout_s * 1000),
        decode_cpu_ms=round(settings.decode_cpu_s * 1000),
        decode_memory_bytes=settings.decode_memory_bytes,
        decode_workers=settings.workers,
        max_batch=settings.max_batch,
        queue_budget_ms=round(settings.queue_budget_s * 1000),
    )
