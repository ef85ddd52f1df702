"""The client for asyncio. The one for everybody else (client.py) runs this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar, cast

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client import wire
from deepmcat_client.errors import ClientError, DeadlineExceeded
from deepmcat_client.requests import Options, RawPlane, Source, load
from deepmcat_client.results import ArtifactInfo, Catalog, Categorization
from deepmcat_client.retry import RetryPolicy
from deepmcat_client.status import from_rpc
from deepmcat_client.stream import ImageStream, StreamSettings

Key = TypeVar("Key")

TIMEOUT_S = 30.0
IN_FLIGHT = 64
MAX_IMAGE_BYTES = 512 * 2**20
STALL_SLACK_S = 30.0  # for the network, beyond the time that the server has for an image
SERVER_TIMEOUT_S = 300.0  # taken where timeout_s is None: over any server's own default

_CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),  # retry.py retries, and knows our reasons
    ("grpc.lb_policy_name", "round_robin"),  # dns:///a-headless-service: all of its servers
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 2**20),  # the catalog of an artifact with many categories
)


class AsyncClient:
    """Talks to one server; open it with `async with`.

    timeout_s: how long an answer may take, retries included; of a stream, each image's. None: no deadline.
    credentials: for TLS, from grpc.ssl_channel_credentials(); None: plain text. in_flight: images of a stream sent
    and not yet taken from the iterator. max_image_bytes: larger files are not read. Every method raises ClientError.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        retry: RetryPolicy | None = None,
        in_flight: int = IN_FLIGHT,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.in_flight = in_flight
        self.max_image_bytes = max_image_bytes
        self._credentials = credentials
        self._retry = retry or RetryPolicy()
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def __aenter__(self) -> AsyncClient:
        """Open the channel; the connection is made by the first call."""
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self.address, self._credentials, options=_CHANNEL_OPTIONS)
        new_stub = cast("Callable[[grpc.aio.Channel], Any]", pb_grpc.CategorizationServiceStub)
        self._stub = new_stub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the channel; calls under way are cancelled."""
        assert self._channel is not None
        await self._channel.close(None)
        self._stub = None

    async def categorize(self, image: Source, options: Options | None = None) -> Categorization:
        """The answer for one image; a large file travels in chunks."""
        options = options or Options()
        content = await asyncio.to_thread(load, image, self.max_image_bytes)
        if not isinstance(content, RawPlane) and len(content) > wire.CHUNK_BYTES:
            return await self._categorize_in_chunks(content, options)
        request = wire.item_request("", content, wire.options_message(options))
        response = await self._call(self._open_stub().Categorize, request)
        return wire.categorization(response.categorization)

    def categorize_stream(
        self,
        items: Iterable[tuple[Key, Source]] | AsyncIterable[tuple[Key, Source]],
        options: Options | None = None,
    ) -> AsyncGenerator[tuple[Key, Categorization | ClientError], None]:
        """For each (id, image) its id and answer, in order. An image without an answer gives its error.

        Ids can be anything and are not sent. Images are taken from `items`, on a thread, as there is room for them;
        those without an answer when a server closes or goes away are sent again on a new call. Leave early inside
        `contextlib.aclosing`, so that the call ends there and then.
        """
        stub = self._open_stub()
        settings = StreamSettings(
            address=self.address,
            options=wire.options_message(options or Options(), self.timeout_s),
            retry=self._retry,
            in_flight=self.in_flight,
            max_image_bytes=self.max_image_bytes,
            stall_s=(SERVER_TIMEOUT_S if self.timeout_s is None else self.timeout_s) + STALL_SLACK_S,
        )
        return ImageStream[Key](stub.CategorizeStream, settings).answers(items)

    async def get_artifact(self, artifact_id: str = "") -> ArtifactInfo:
        """The artifact in force, or the one asked for, and what serves it."""
        request = pb.GetArtifactRequest(artifact_id=artifact_id)
        return wire.artifact_info(await self._call(self._open_stub().GetArtifact, request))

    async def list_categories(self, artifact_id: str = "") -> Catalog:
        """The categories of the catalog version in force."""
        request = pb.ListCategoriesRequest(artifact_id=artifact_id)
        return wire.catalog(await self._call(self._open_stub().ListCategories, request))

    def _open_stub(self) -> Any:
        if self._stub is None:
            raise RuntimeError("the client is not open; use it inside `with`")
        return self._stub

    async def _categorize_in_chunks(self, image: bytes, options: Options) -> Categorization:
        answers = self.categorize_stream([(None, image)], options)
        try:
            async with asyncio.timeout(self.timeout_s):
                _, answer = await anext(answers)
        except TimeoutError:
            raise self._too_late() from None
        finally:
            await answers.aclose()
        if isinstance(answer, ClientError):
            raise answer
        return answer

    async def _call(self, method: Any, request: Any) -> Any:
        """One unary call with its retries, all within timeout_s."""
        now = asyncio.get_running_loop().time
        deadline = None if self.timeout_s is None else now() + self.timeout_s
        failures = 0
        while True:
            try:
                return await method(request, timeout=None if deadline is None else max(0.0, deadline - now()))
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc(rpc_error, self.address)
            failures += 1
            delay_s = self._retry.delay_s(error, failures)
            if delay_s is None or (deadline is not None and now() + delay_s >= deadline):
                raise error
            await asyncio.sleep(delay_s)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer from {self.address} within {self.timeout_s:g} seconds; give a longer one")
