"""Around every call: what is counted and logged of it, and how its errors travel.

    Remembering ─► Observing ─► Translating ─► Access (access.py) ─► Gate (gate.py)
        ─► Shedding (shedding.py) ─► Reading (reading.py) ─► handler

The translating interceptor is the only place that aborts a call. Reading is last: it makes a stream of every request,
so that nothing of one is read before the gate has let the call in, and a malformed one is an error like others.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from deepmcat_core import logs
from deepmcat_server.callers import peer_key
from deepmcat_server.metrics import Metrics
from deepmcat_server.status import outcome_of, to_status, trailers

LOG = logs.logger("server.calls")
OWN_PACKAGES = ("deepmcat.", "inference.")
"""Of the services that do our work: ours, and the Open Inference Protocol's."""


@dataclass(slots=True)
class Call:
    """What is known of a call. images, size_bytes of them: what its handler tells for the access line.

    caller: the key of whom it is from, the same from call to call: of the token or certificate, else the address
    (callers.py). Never a label and never in a log line as it stands.
    """

    images: int = 0
    size_bytes: int = 0
    caller: str = ""


CALL: ContextVar[Call] = ContextVar("CALL")
"""The call of the current handler."""

Handler = Any  # grpc.RpcMethodHandler, whose stubs say nothing of its members
Context = Any  # grpc.aio.ServicerContext, whose stubs lack code() and done()


class Trace(Protocol):
    """The trace of a call: `tracing.CallTrace`."""

    @property
    def trace_id(self) -> str:
        """Of the trace that the call is in."""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels that lead from a measurement to the trace."""

    def end(self, code: str, *, images: int, caller_id: str) -> None:
        """The call has ended."""


class Remembering(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """The first interceptor: what all of them make of a method is made once and not for every call.

    Handlers are registered before a server starts, and interceptors look at a call's context only. A method that nobody
    registered is not remembered: anybody may make up names.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], handler_call_details: Any
    ) -> Handler:
        """The handler with all interceptors around it."""
        method: str = handler_call_details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is not None:
            self._handlers[method] = handler
        return handler


class _Wrapping(grpc.aio.ServerInterceptor, ABC):  # type: ignore[type-arg]  # generic in its stubs only
    """An interceptor that puts something around the handler of each method. `Reading` comes after it."""

    @abstractmethod
    def wrap(self, handler: Handler, service: str, method: str) -> Handler:
        """The handler of `service`/`method`, both names of services registered here, with what comes around it."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], handler_call_details: Any
    ) -> Handler:
        """The handler, wrapped; a method that nobody registered is left to gRPC."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        _, service, method = handler_call_details.method.split("/")
        return self.wrap(handler, service, method)


class Around(_Wrapping):
    """An interceptor that is a context manager around the handler."""

    @abstractmethod
    def around(self, service: str, method: str, context: Context) -> AbstractAsyncContextManager[None]:
        """What happens around a call of `service`/`method`."""

    def wrap(self, handler: Handler, service: str, method: str) -> Handler:
        """The handler with `around` around it."""
        inner = behaviour(handler)

        async def call(requests: Any, context: Context) -> Any:
            async with self.around(service, method, context):
                return await inner(requests, context)

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
            async with self.around(service, method, context):
                async for response in inner(requests, context):
                    yield response

        return of_call(handler, inner, call, generate)


class Before(_Wrapping):
    """An interceptor that lets a call go on or raises, and has nothing to do with how it ends."""

    @abstractmethod
    async def before(self, service: str, method: str, context: Context) -> None:
        """Let a call of `service`/`method` go on, or raise."""

    def wrap(self, handler: Handler, service: str, method: str) -> Handler:
        """The handler behind `before`."""
        inner = behaviour(handler)

        async def call(requests: Any, context: Context) -> Any:
            await self.before(service, method, context)
            return await inner(requests, context)

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
            await self.before(service, method, context)
            async for response in inner(requests, context):
                yield response

        return of_call(handler, inner, call, generate)


class Observing(Around):
    """Counts, times and traces each call, and writes one access line for it."""

    def __init__(
        self,
        metrics: Metrics,
        caller_id: Callable[[str], str],
        *,
        begin_trace: Callable[[str, str, Context], Trace | None] = lambda service, method, context: None,
        access_log: bool = True,
    ) -> None:
        """caller_id: what stands in the log for a caller. begin_trace: of a call; None for one that is not traced."""
        self._metrics = metrics
        self._caller_id = caller_id
        self._begin_trace = begin_trace
        self._access_log = access_log

    @asynccontextmanager
    async def around(self, service: str, method: str, context: Context) -> AsyncIterator[None]:
        """Count, time, trace, log."""
        started, call, code = time.perf_counter(), Call(caller=peer_key(context.peer())), "OK"
        CALL.set(call)
        trace = self._begin_trace(service, method, context)
        self._metrics.started.labels(service, method).inc()
        try:
            yield
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if _late(context) else "CANCELLED"
            raise
        except Exception:
            code = _code(context)
            raise
        finally:
            duration_s = time.perf_counter() - started
            self._metrics.handled.labels(service, method, code).inc()
            self._metrics.handling.labels(service, method).observe(duration_s, trace.exemplar if trace else None)
            if trace is not None:
                trace.end(code, images=call.images, caller_id=self._caller_id(call.caller))
            if self._access_log:
                self._log(call, service, method, code, duration_s, trace)

    def _log(self, call: Call, service: str, method: str, code: str, duration_s: float, trace: Trace | None) -> None:
        # Probes call every few seconds: their lines are for debugging only.
        level = logging.INFO if service.startswith(OWN_PACKAGES) else logging.DEBUG
        if not LOG.isEnabledFor(level):
            return
        traced: dict[str, Any] = {"trace_id": trace.trace_id} if trace else {}
        logs.event(
            LOG,
            level,
            "call",
            method=method,
            code=code,
            duration_s=round(duration_s, 6),
            images=call.images,
            size_bytes=call.size_bytes,
            caller_id=self._caller_id(call.caller),
            **traced,
        )


class Translating(Around):
    """Ends a call with the status of the error that its handler raised."""

    @asynccontextmanager
    async def around(self, service: str, method: str, context: Context) -> AsyncIterator[None]:
        """Translate, once."""
        try:
            yield
        except grpc.aio.AbortError:  # a standard servicer (health) has answered already
            raise
        except Exception as error:  # the border: nothing of ours goes further
            if outcome_of(error) is None:
                logs.event(LOG, logging.ERROR, "internal error", method=method, exc_info=True)
            if _over(context):
                # Nobody listens any more. Aborting would only make gRPC log a failed send.
                raise asyncio.CancelledError from error
            status = to_status(error)
            code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
            await context.abort(code, status.message, trailers(error, status))


def _over(context: Context) -> bool:
    return bool(context.done()) or _late(context)


def _late(context: Context) -> bool:
    remaining = context.time_remaining()
    return remaining is not None and remaining <= 0


def _code(context: Context) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN.name


def behaviour(handler: Handler) -> Callable[..., Any]:
    """What a handler calls: a coroutine function or an asynchronous generator."""
    kind = ("unary", "stream")
    inner: Callable[..., Any] = getattr(
        handler, f"{kind[handler.request_streaming]}_{kind[handler.response_streaming]}"
    )
    return inner


def of_stream(handler: Handler, inner: Callable[..., Any], deserializer: Callable[[bytes], Any]) -> Handler:
    """`handler` with another behaviour, which gets a stream of requests, and another deserializer."""
    factory = (
        grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    )
    return factory(inner, request_deserializer=deserializer, response_serializer=handler.response_serializer)


def of_call(
    handler: Handler, inner: Callable[..., Any], call: Callable[..., Any], generate: Callable[..., Any]
) -> Handler:
    """`handler` with one of both around `inner`: `generate` where that gives several answers."""
    return of_stream(handler, generate if inspect.isasyncgenfunction(inner) else call, handler.request_deserializer)
