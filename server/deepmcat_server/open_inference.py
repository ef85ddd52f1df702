"""The Open Inference Protocol v2 (KServe, Triton) on our port: inference.GRPCInferenceService.

The one model is `deepmcat`; its versions are the loaded artifacts, by id or by name, and the empty one is the default.
Messages come from tritonclient (extra [triton]): a second copy of what defines `inference.*` could not be loaded into
one process with it. Methods of Triton that are not here end with UNIMPLEMENTED, which is gRPC's own answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as oip

from deepmcat_core import logs
from deepmcat_core.errors import DeepmcatError
from deepmcat_server import inference_models
from deepmcat_server.config import Settings
from deepmcat_server.errors import ArtifactNotFound, ServerClosing
from deepmcat_server.inference import Door, Inference
from deepmcat_server.inference_models import MODEL, Statistics
from deepmcat_server.inference_tensors import Wanted, read_request, write_response
from deepmcat_server.interceptors import CALL, LOG
from deepmcat_server.lines import Line, Lines
from deepmcat_server.status import outcome_of, reason_of, to_status
from deepmcat_server.streams import Closing, Inbox, answer_in_order

EOF: object = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics")
FINAL = "triton_final_response"

Context = Any  # grpc.aio.ServicerContext, generic in the messages of each method


class OpenInferenceServicer:
    """Answers the protocol's calls. Errors leave as exceptions, as those of our own service do."""

    def __init__(
        self, *, settings: Settings, lines: Lines, door: Door, closing: Closing, ready: Callable[[], bool]
    ) -> None:
        """ready: whether the server is SERVING."""
        self.settings = settings
        self._lines = lines
        self.door = door
        self._closing = closing
        self._ready = ready
        self.statistics = Statistics()

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        """It answers."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        """Whether it takes images; not any more as soon as it drains."""
        return oip.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        """Whether a version is loaded."""
        try:
            self.line(request)
        except ArtifactNotFound:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._ready())

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Who we are, and which extensions we have."""
        return oip.ServerMetadataResponse(name="deepmcat", version=version("deepmcat"), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:  # noqa: N802
        """The tensors of a version."""
        return inference_models.metadata(self.line(request), [line.artifact_id for line in self._lines])

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:  # noqa: N802
        """The same, as Triton configures it."""
        return inference_models.config(self.line(request))

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Requests of this protocol, of a version or of all."""
        lines = [self.line(request)] if request.name and request.version else list(self._lines)
        if request.name and not request.version:
            self.line(request)
        return oip.ModelStatisticsResponse(model_stats=[self.statistics.message(line) for line in lines])

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """The loaded artifacts."""
        index = oip.RepositoryIndexResponse.ModelIndex
        return oip.RepositoryIndexResponse(
            models=[index(name=MODEL, version=line.artifact_id, state="READY") for line in self._lines]
        )

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        """The images of one request; refused at once where the server is full."""
        asked = _Request(self, request)
        del request  # it holds the images a second time
        remaining_s: float | None = context.time_remaining()
        await asked.begin(math.inf if remaining_s is None else remaining_s, at_once=True)
        return await asked.response()

    async def ModelStreamInfer(self, request_iterator: object, context: Context) -> None:  # noqa: N802
        """Requests on one call, answered in their order. One that fails has its error as its answer."""
        inbox: Inbox[oip.ModelInferRequest] = Inbox(context.read, EOF, self._closing)

        async def next_task() -> asyncio.Task[oip.ModelStreamInferResponse] | None:
            message = await inbox.next()
            return None if message is None else await self._begin(message)

        write = self.door.metrics.replying(context.write)
        await answer_in_order(next_task, write, max_in_flight=self.settings.max_stream_in_flight)
        if inbox.cut_off:
            raise ServerClosing("the server is shutting down; send the requests that have no answer elsewhere")

    async def _begin(self, message: oip.ModelInferRequest) -> asyncio.Task[oip.ModelStreamInferResponse]:
        """The task that answers a request of a stream: waiting for room for it is the flow control."""
        request_id = message.id
        try:
            request = _Request(self, message)
            del message  # as above
            allowed_s = self.settings.default_timeout_s if request.wanted.timeout_s == math.inf else math.inf
            await request.begin(min(allowed_s, self.settings.max_timeout_s), at_once=False)
        except DeepmcatError as error:
            return asyncio.create_task(_ready(_failed(request_id, error)))
        task = asyncio.create_task(_streamed(request))
        task.add_done_callback(lambda _: request.end())  # also where it is cancelled before it begins
        return task

    def line(self, request: Any) -> Line:
        """The line that a request means. Raises ArtifactNotFound."""
        name, pin = (
            (request.model_name, request.model_version)
            if isinstance(request, oip.ModelInferRequest)
            else (request.name, request.version)
        )
        if name != MODEL:
            raise ArtifactNotFound(f"there is no model of that name; this server has {MODEL}")
        return self._lines.find(pin)


class _Request:
    """One request for answers: read, let in, answered, counted."""

    def __init__(self, servicer: OpenInferenceServicer, message: oip.ModelInferRequest) -> None:
        """Raises ArtifactNotFound, InvalidRequest, ImageTooLarge."""
        self._since = time.perf_counter_ns()
        self._line = servicer.line(message)
        self._statistics = servicer.statistics
        self._inference = Inference(servicer.door, self._line, CALL.get().caller)
        with servicer.door.metrics.stage("receive"), self._failing():
            self.wanted: Wanted = read_request(
                message,
                size=self._line.categorizer.artifact.manifest.preprocessing.size,
                max_images=servicer.settings.max_queue,
                max_image_bytes=servicer.settings.max_image_bytes,
            )
        call, images = CALL.get(), self.wanted.images
        call.images += len(images)
        call.size_bytes += sum(map(len, images)) if isinstance(images, list) else images.nbytes

    async def begin(self, allowed_s: float, *, at_once: bool) -> None:
        """Let the images in. allowed_s: for the answer, where the request allows no less. Raises ServerError."""
        deadline = asyncio.get_running_loop().time() + min(self.wanted.timeout_s, allowed_s)
        with self._failing():
            await self._inference.let_in(self.wanted.images, deadline=deadline, at_once=at_once)

    async def response(self) -> oip.ModelInferResponse:
        """The answer. Raises ImageError, InferenceError, ServerError."""
        with self._failing():
            answers = await self._inference.answers()
        self.end()
        self._statistics.succeeded(self._line, len(answers), time.perf_counter_ns() - self._since)
        return write_response(self.wanted, answers, model=MODEL, version=self._line.artifact_id)

    def end(self) -> None:
        """Cancel what is not answered."""
        self._inference.end()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What fails here ends the request."""
        try:
            yield
        except BaseException:
            self._statistics.failed(self._line, time.perf_counter_ns() - self._since)
            self.end()
            raise


async def _streamed(request: _Request) -> oip.ModelStreamInferResponse:
    try:
        response = await request.response()
    except Exception as error:  # noqa: BLE001  # one request never ends a stream: its error is its answer
        return _failed(request.wanted.request_id, error)
    if request.wanted.wants_final:
        response.parameters[FINAL].bool_param = True
    return oip.ModelStreamInferResponse(infer_response=response)


def _failed(request_id: str, error: Exception) -> oip.ModelStreamInferResponse:
    """An error as Triton's streams have it: text, and so the reason is in it."""
    if outcome_of(error) is None:
        logs.event(LOG, logging.ERROR, "internal error", method="ModelStreamInfer", exc_info=True)
    return oip.ModelStreamInferResponse(
        error_message=f"{reason_of(error)}: {to_status(error).message}",
        infer_response=oip.ModelInferResponse(id=request_id),
    )


async def _ready(response: oip.ModelStreamInferResponse) -> oip.ModelStreamInferResponse:
    return response


def add_to_server(servicer: OpenInferenceServicer, server: grpc.aio.Server) -> None:
    """Register the methods that the servicer has: gRPC answers UNIMPLEMENTED for the others."""
    handlers = {}
    for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        behaviour = getattr(servicer, method.name, None)
        if behaviour is None:
            continue
        factory = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        )
        request, response = (getattr(oip, kind.name) for kind in (method.input_type, method.output_type))
        handlers[method.name] = factory(
            behaviour, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
