"""When a request is read: inside the interceptors, and never before a call has been let in."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from deepmcat_server.errors import InvalidRequest, ServerBusy
from deepmcat_server.interceptors import Context, Handler, behaviour, of_stream

EOF: object = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


class Reading(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Reads the one request of a call that has only one, and says so of a request that is malformed.

    gRPC reads that one before it calls the handler, and so before any interceptor can refuse the call: a server that
    is full would take a message of each caller all the same. On the wire a stream of one is the same thing.
    """

    def __init__(self, *, timeout_s: float) -> None:
        """timeout_s: how long the one request may take to arrive. Those of a stream take as long as they like."""
        self._timeout_s = timeout_s

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], handler_call_details: Any
    ) -> Handler:
        """The handler, with a stream of requests whatever it had."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        inner, deserializer = behaviour(handler), _checked(handler.request_deserializer)
        if handler.request_streaming:
            return of_stream(handler, inner, deserializer)

        # Neither keeps the request in a variable: it may be large, and its handler lets go of it early.
        async def call(_: Any, context: Context) -> Any:
            return await inner(await self._only(context), context)

        async def generate(_: Any, context: Context) -> AsyncIterator[Any]:
            async for response in inner(await self._only(context), context):
                yield response

        return of_stream(handler, generate if inspect.isasyncgenfunction(inner) else call, deserializer)

    async def _only(self, context: Context) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                request = await context.read()
        except TimeoutError as error:
            raise ServerBusy(f"the request did not arrive within {self._timeout_s:g} s; send it again") from error
        if request is EOF:
            raise InvalidRequest("the call has no request", "")
        return request


def _checked(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserializer`, which raises InvalidRequest for bytes that are no message of its kind."""

    def deserialize(content: bytes) -> Any:
        try:
            return deserializer(content)
        except DecodeError as error:
            raise InvalidRequest(
                "the request is not a message of the contract: its bytes cannot be parsed", ""
            ) from error

    return deserialize
