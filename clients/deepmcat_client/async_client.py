"""The client for asyncio. The one for everybody else (client.py) runs this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import wire
from deepmcat_client.call import StreamSettings
from deepmcat_client.connections import Connections, ConnectionSettings
from deepmcat_client.errors import ClientError, DeadlineExceeded, InvalidRequest, TryAgain
from deepmcat_client.requests import Options, RawPlane, Source, load
from deepmcat_client.results import ArtifactInfo, Catalog, Categorization
from deepmcat_client.retry import RetryBudget, RetryPolicy
from deepmcat_client.security import Tls, Token
from deepmcat_client.status import from_rpc
from deepmcat_client.stream import ImageStream
from deepmcat_client.targets import is_many, parse_targets

Key = TypeVar("Key")

TIMEOUT_S = 30.0
IN_FLIGHT = 64
MAX_IMAGE_BYTES = 512 * 2**20
IMAGES_PER_CALL = 1000
KEEPALIVE_S = 20.0
LANES_TO_MANY = 4  # of a stream to a target with many servers
CALL_S = 120.0  # a call of a stream is ended after so long, as after IMAGES_PER_CALL
STALL_SLACK_S = 30.0  # for the network, beyond the time that the server has for an image
SERVER_TIMEOUT_S = 300.0  # taken where timeout_s is None: over any server's own default


class AsyncClient:
    """Talks to one server, or to several that serve the same; open it with `async with`.

    target: HOST:PORT, several with commas, or dns:///HOST:PORT for all servers behind a name. tls: None is plain text.
    token: a bearer token, or what gives the one in force; never sent in plain text but to this machine.
    timeout_s: how long an answer may take, retries included; of a stream, each try of each image. None: no deadline.
    in_flight: images of a stream sent and not yet taken from the iterator. max_image_bytes: larger files are not read.
    channels: connections to each target. streams: calls of a stream at a time; None: one a channel, and at least four
    to dns:///. images_per_call: then a stream goes on with another call, so that new servers get their share.
    keepalive_s: how often a silent connection is tried. Every method raises ClientError.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        timeout_s: float | None = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        in_flight: int = IN_FLIGHT,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        channels: int = 1,
        streams: int | None = None,
        images_per_call: int = IMAGES_PER_CALL,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        for name, value in {"in_flight": in_flight, "channels": channels, "images_per_call": images_per_call}.items():
            if value < 1:
                raise InvalidRequest(f"{name} is {value}; at least 1 is needed")
        self.target = target
        self.timeout_s = timeout_s
        self.in_flight = in_flight
        self.max_image_bytes = max_image_bytes
        self.images_per_call = images_per_call
        self._targets = parse_targets(target)
        self._streams = streams
        self._retry = retry or RetryPolicy()
        self._connection_settings = ConnectionSettings(
            targets=self._targets, tls=tls, token=token, channels=channels, keepalive_s=keepalive_s
        )
        self._connections: Connections | None = None
        self._budget: RetryBudget | None = None

    async def __aenter__(self) -> AsyncClient:
        """Open the channels; the connections are made by the first calls."""
        self._connections = Connections(self._connection_settings)
        now = asyncio.get_running_loop().time
        self._budget = RetryBudget(self._retry.budget, self._retry.budget_per_s, now)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the channels; calls under way are cancelled."""
        connections, self._connections = self._opened(), None
        await connections.aclose()

    async def categorize(self, image: Source, options: Options | None = None) -> Categorization:
        """The answer for one image; a large file travels in chunks."""
        options = options or Options()
        content = await asyncio.to_thread(load, image, self.max_image_bytes)
        if not isinstance(content, RawPlane) and len(content) > wire.CHUNK_BYTES:
            return await self._categorize_in_chunks(content, options)
        request = wire.item_request("", content, wire.options_message(options))
        response = await self._call("Categorize", request)
        return wire.categorization(response.categorization)

    def categorize_stream(
        self,
        items: Iterable[tuple[Key, Source]] | AsyncIterable[tuple[Key, Source]],
        options: Options | None = None,
    ) -> AsyncGenerator[tuple[Key, Categorization | ClientError], None]:
        """For each (id, image) its id and answer, in order. An image without an answer gives its error.

        Ids can be anything and are not sent. Images are taken from `items`, on a thread, as there is room for them;
        those without an answer when a server closes or goes away are sent again on a new call. Leave early inside
        `contextlib.aclosing`, so that the calls end there and then.
        """
        connections, budget = self._opened(), self._budget
        assert budget is not None
        settings = StreamSettings(
            options=wire.options_message(options or Options(), self.timeout_s),
            retry=self._retry,
            lanes=min(self.in_flight, self._lanes(connections)),
            in_flight=self.in_flight,
            max_image_bytes=self.max_image_bytes,
            images_per_call=self.images_per_call,
            call_s=CALL_S,
            stall_s=(SERVER_TIMEOUT_S if self.timeout_s is None else self.timeout_s) + STALL_SLACK_S,
        )
        return ImageStream[Key](connections, budget, settings).answers(items)

    async def get_artifact(self, artifact_id: str = "") -> ArtifactInfo:
        """The artifact in force, or the one asked for, and what serves it."""
        return wire.artifact_info(await self._call("GetArtifact", pb.GetArtifactRequest(artifact_id=artifact_id)))

    async def list_categories(self, artifact_id: str = "") -> Catalog:
        """The categories of the catalog version in force."""
        return wire.catalog(await self._call("ListCategories", pb.ListCategoriesRequest(artifact_id=artifact_id)))

    def _opened(self) -> Connections:
        if self._connections is None:
            raise RuntimeError("the client is not open; use it inside `with`")
        return self._connections

    def _lanes(self, connections: Connections) -> int:
        if self._streams is not None:
            return max(1, self._streams)
        return max(len(connections), LANES_TO_MANY if any(map(is_many, self._targets)) else 1)

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

    async def _call(self, method: str, request: Any) -> Any:
        """One unary call with its retries, all within timeout_s."""
        now = asyncio.get_running_loop().time
        deadline = None if self.timeout_s is None else now() + self.timeout_s
        connections, budget = self._opened(), self._budget
        assert budget is not None
        failures = 0
        while True:
            try:
                response = await self._try(connections, method, request, deadline)
            except TryAgain as error:
                failures += 1
                delay_s = self._retry.delay_s(error, failures)
                if delay_s is None:
                    raise
                delay_s = max(delay_s, budget.take())
                if deadline is not None and now() + delay_s >= deadline:
                    budget.give_back()
                    raise
                await asyncio.sleep(delay_s)
            else:
                budget.answered()
                return response

    async def _try(self, connections: Connections, method: str, request: Any, deadline: float | None) -> Any:
        async with connections.lease() as connection:
            metadata = await connections.metadata()
            left_s = None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                response = await getattr(connection.stub, method)(request, timeout=left_s, metadata=metadata)
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc(rpc_error, connection.target)
                if isinstance(error, TryAgain):
                    connections.failed(connection, error)
                raise error from None
            connections.answered(connection)
            return response

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer from {self.target} within {self.timeout_s:g} seconds; give a longer one")
