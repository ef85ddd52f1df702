"""A server with hand-written answers and hand-written misbehaviour, over a real channel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client import AsyncClient, RetryPolicy

ARTIFACT_ID = "a" * 64
QUICK = RetryPolicy(attempts=3, first_s=0.001, most_s=0.002, budget=1000)
CODES = {
    "NOT_AN_IMAGE": grpc.StatusCode.INVALID_ARGUMENT,
    "CORRUPT_IMAGE": grpc.StatusCode.INVALID_ARGUMENT,
    "ARTIFACT_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SERVER_BUSY": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SERVER_CLOSING": grpc.StatusCode.UNAVAILABLE,
}


def status(reason: str, *, retry_s: float | None = None) -> Status:
    """The status of one of the server's errors."""
    details = [AnyMessage(), AnyMessage()]
    details[0].Pack(ErrorInfo(reason=reason, domain="deepmcat.dev"))
    if retry_s is None:
        del details[1]
    else:
        delay = Duration()
        delay.FromMilliseconds(int(retry_s * 1000))
        details[1].Pack(RetryInfo(retry_delay=delay))
    return Status(code=CODES[reason].value[0], message=f"the server says {reason}", details=details)


async def fail(context: Any, reason: str, *, retry_s: float | None = None) -> None:
    """End the call with one of the server's errors, as the server's interceptor does."""
    error = status(reason, retry_s=retry_s)
    trailers = [("grpc-status-details-bin", error.SerializeToString())]
    if retry_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(int(retry_s * 1000))))
    await context.abort(CODES[reason], error.message, tuple(trailers))


def answer(image: bytes) -> pb.Categorization:
    """An answer that can be told apart: its cluster is the image's size."""
    assignment = pb.Assignment(
        category_id="c-1",
        category="CT CHEST",
        cluster_id=len(image),
        distance=0.25,
        p_value=0.5,
        outlier=False,
        candidates=[pb.Candidate(category_id="c-1", category="CT CHEST", cluster_id=len(image), distance=0.25)],
    )
    return pb.Categorization(
        assignment=assignment,
        frames=[pb.FrameAssignment(frame_number=1, assignment=assignment)],
        total_frames=1,
        flags=[pb.IMAGE_FLAG_DERIVED],
        artifact_id=ARTIFACT_ID,
        catalog_version=1,
    )


def artifact_response() -> pb.GetArtifactResponse:
    """An artifact that gives no verdicts."""
    return pb.GetArtifactResponse(
        artifact=pb.Artifact(
            artifact_id=ARTIFACT_ID,
            created_at="2024-01-01T00:00:00Z",
            encoder="efficientnet_lite0",
            dim=1280,
            clusters=8,
            categories=1,
            catalog_version=1,
            preprocessing=pb.Preprocessing(version=1, size=128, intensity="percentile", frames=3),
            calibration=pb.Calibration(images=7, groups=1, alpha=0.01, note="No outlier verdicts: 7 images."),
            recipe="frozen",
            decoders=["pydicom 3.0.2"],
            precision_gates=[
                pb.PrecisionGate(
                    device="cuda",
                    precision="float16",
                    images=512,
                    min_cosine=0.9998,
                    category_agreement=1,
                    passed=True,
                )
            ],
        ),
        limits=pb.Limits(max_message_bytes=4 * 2**20, max_image_bytes=512 * 2**20, max_stream_in_flight=64),
        engine="onnxruntime",
        device="cpu",
        precision="float32",
        server_version="0.1.0",
        decoders=["pydicom 3.0.2"],
    )


def categories_response() -> pb.ListCategoriesResponse:
    """One category."""
    category = pb.Category(
        category_id="c-1",
        name="CT CHEST",
        status=pb.CATEGORY_STATUS_SUGGESTED,
        cluster_ids=[0, 1],
        fit_images=12,
        terms=[pb.Term(attribute="Modality", value="CT", share=0.75)],
    )
    return pb.ListCategoriesResponse(categories=[category], artifact_id=ARTIFACT_ID, catalog_version=1)


@dataclass
class Received:
    """One image as it arrived in a stream, with what its call knew of it."""

    item_id: str
    image: bytes
    options: pb.CategorizeOptions
    largest_message: int


async def received_images(requests: AsyncIterator[pb.CategorizeStreamRequest]) -> AsyncIterator[Received]:
    """The images of a stream, chunks put together; refuses what the contract does not allow."""
    item, expected, pieces = None, 0, bytearray()
    async for message in requests:
        if message.HasField("item"):
            assert expected == 0, "an image began before the chunks of the last had come"
            item = message.item
            if item.image.WhichOneof("content") == "encoded":
                yield Received(item.item_id, item.image.encoded, item.options, message.ByteSize())
                continue
            expected, pieces = item.image.chunked.size_bytes, bytearray()
            continue
        assert item is not None
        assert len(message.chunk) <= 2**20
        pieces += message.chunk
        assert len(pieces) <= expected
        if len(pieces) == expected:
            expected = 0
            yield Received(item.item_id, bytes(pieces), item.options, 2**20)


StreamScript = Callable[["FakeServicer", int, AsyncIterator[Received], Any], AsyncIterator[pb.CategorizeStreamResponse]]


async def answer_all(
    servicer: FakeServicer, call: int, images: AsyncIterator[Received], context: Any
) -> AsyncIterator[pb.CategorizeStreamResponse]:
    """The well-behaved stream; content b"corrupt" and b"report" have errors for answers."""
    async for received in images:
        yield respond(received)


def respond(received: Received, error: Status | None = None) -> pb.CategorizeStreamResponse:
    """The answer to one image of a stream."""
    named = {b"corrupt": "CORRUPT_IMAGE", b"report": "NOT_AN_IMAGE"}.get(received.image)
    error = status(named) if named else error
    if error is not None:
        return pb.CategorizeStreamResponse(item_id=received.item_id, error=error)
    return pb.CategorizeStreamResponse(item_id=received.item_id, categorization=answer(received.image))


@dataclass
class FakeServicer(pb_grpc.CategorizationServiceServicer):
    """Counts calls; `unary` and `stream` say how to misbehave."""

    stream: StreamScript = answer_all
    unary: Callable[[FakeServicer, pb.CategorizeRequest, Any], Coroutine[Any, Any, None]] | None = None
    unary_calls: int = 0
    stream_calls: int = 0
    received: list[Received] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)  # of every call, "" where it had none
    images_of_call: dict[int, int] = field(default_factory=dict)

    async def Categorize(self, request: pb.CategorizeRequest, context: Any) -> pb.CategorizeResponse:  # noqa: N802 - the contract's name
        self.unary_calls += 1
        self._note(context)
        if self.unary is not None:
            await self.unary(self, request, context)
        return pb.CategorizeResponse(item_id=request.item_id, categorization=answer(request.image.encoded))

    async def CategorizeStream(  # noqa: N802 - the contract's name
        self, requests: AsyncIterator[pb.CategorizeStreamRequest], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        self.stream_calls += 1
        self._note(context)
        call = self.stream_calls
        async for response in self.stream(self, call, self._recorded(requests, call), context):
            yield response

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Any) -> pb.GetArtifactResponse:  # noqa: N802 - the contract's name
        if request.artifact_id not in ("", ARTIFACT_ID):
            await fail(context, "ARTIFACT_NOT_FOUND")
        return artifact_response()

    async def ListCategories(self, request: pb.ListCategoriesRequest, context: Any) -> pb.ListCategoriesResponse:  # noqa: N802 - the contract's name
        return categories_response()

    def _note(self, context: Any) -> None:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))

    async def _recorded(
        self, requests: AsyncIterator[pb.CategorizeStreamRequest], call: int
    ) -> AsyncIterator[Received]:
        async for received in received_images(requests):
            self.received.append(received)
            self.images_of_call[call] = self.images_of_call.get(call, 0) + 1
            yield received


@asynccontextmanager
async def serving(
    servicer: FakeServicer, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> AsyncIterator[str]:
    """The address of a server with `servicer`, on this loop."""
    # Pings as often as a test wants; so_reuseport: two servers never share a port by accident.
    options = [("grpc.http2.min_ping_interval_without_data_ms", 10), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    pb_grpc.add_CategorizationServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{port}"
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextmanager
def serving_in_thread(servicer: FakeServicer, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """The same for code without asyncio: the server has a loop on a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = serving(servicer, credentials)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def collect(servicer: FakeServicer, items: Any, **client: Any) -> list[tuple[Any, Any]]:
    """All answers to `items`."""
    async with serving(servicer) as address, AsyncClient(address, **({"retry": QUICK} | client)) as opened:
        return [pair async for pair in opened.categorize_stream(items)]


def sizes(answers: list[tuple[Any, Any]]) -> list[tuple[Any, int]]:
    """The keys and, out of the answers, the sizes of the images."""
    return [(key, answer.assignment.cluster_id) for key, answer in answers]
