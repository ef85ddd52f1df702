"""From a gRPC status to an error of ours: by the reason in its ErrorInfo, else by its code.

A call carries google.rpc.Status in the trailer grpc-status-details-bin; an item of a stream carries it as its answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from deepmcat_client.errors import (
    BY_REASON,
    Cancelled,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    PermissionDenied,
    ServerBusy,
    ServerError,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "deepmcat.dev"
DETAILS, PUSHBACK = "grpc-status-details-bin", "grpc-retry-pushback-ms"

# For statuses that do not come from DeepMCAT but from gRPC itself or a proxy on the way.
_BY_CODE: dict[int, type[ClientError]] = {
    grpc.StatusCode.CANCELLED.value[0]: Cancelled,
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlineExceeded,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE.value[0]: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED.value[0]: InvalidRequest,
    # gRPC's own answer to an over-long message: sending it again cannot help, so it is no ServerBusy.
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: InvalidRequest,
}


def from_status(status: Any, pushback_s: float | None = None) -> ClientError:
    """The error that a google.rpc.Status stands for. pushback_s: of the call's trailer, which wins over RetryInfo."""
    info, retry = ErrorInfo(), RetryInfo()
    reason, retry_after_s = "", pushback_s
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif detail.Unpack(retry) and retry_after_s is None:
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    error = BY_REASON.get(reason) or _by_code(status.code, pushback_s)
    return error(status.message or reason or "the server gave no message", retry_after_s=retry_after_s)


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> ClientError:
    """The error that a failed call stands for. address: of the server, for the message where nobody answered."""
    trailer: dict[str, str | bytes] = dict(cast("Iterable[Any]", error.trailing_metadata() or ()))
    status = _details(trailer.get(DETAILS))
    if status is None:
        status = Status(code=error.code().value[0], message=_message(error, address))
    return from_status(status, _pushback_s(trailer.get(PUSHBACK)))


def _by_code(code: int, pushback_s: float | None) -> type[ClientError]:
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] and pushback_s is not None:
        return ServerBusy
    return _BY_CODE.get(code, ServerError)


def _details(value: str | bytes | None) -> Any | None:
    if not isinstance(value, bytes):
        return None
    try:
        return Status.FromString(value)
    except DecodeError:
        return None


def _pushback_s(value: str | bytes | None) -> float | None:
    """Seconds of a grpc-retry-pushback-ms trailer. Negative or unreadable: do not retry (gRFC A6), as infinity."""
    if value is None:
        return None
    try:
        milliseconds = int(value)
    except ValueError:
        return float("inf")
    return milliseconds / 1000 if milliseconds >= 0 else float("inf")


# What gRPC says where no connection comes about, in the words of the libraries below it, and what it means.
_NO_CONNECTION = {
    "CERTIFICATE_VERIFY_FAILED": "the certificate of {address} is not one that this client trusts (--tls-ca)",
    "Hostname Verification Check failed": "the certificate of {address} is for another name (--tls-server-name)",
    "WRONG_VERSION_NUMBER": "what answers at {address} does not speak TLS",
    "DNS resolution failed": "the name in {address} is not known here",
    "Connection refused": "no DeepMCAT server answers at {address}; is it running there?",
    "Socket closed": "the connection to {address} was closed",
    "Connection reset": "the connection to {address} was closed",
    "GOAWAY": "the server at {address} is closing",
    "ping timeout": "the connection to {address} has died",
}


def _message(error: grpc.aio.AioRpcError, address: str) -> str:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        details = error.details() or ""
        known = (sentence for sign, sentence in _NO_CONNECTION.items() if sign in details)
        sentence = next(known, "no DeepMCAT server answers at {address}; is it running there?").format(address=address)
        return f"{sentence} `deepmcat doctor --server {address}` looks why"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return f"what answers at {address} does not serve deepmcat.v1"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server at {address} did not answer in time; give a longer timeout or ask it for less at once"
    return error.details() or error.code().name
