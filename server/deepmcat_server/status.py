"""From our errors to gRPC's: the one table, looked up along the class's __mro__.

What is not in the table is a bug of ours: INTERNAL, "internal error", and a traceback in the log only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from deepmcat_core.errors import (
    CorruptImage,
    DeepmcatError,
    FrameOutOfRange,
    ImageTooLarge,
    InferenceError,
    NotAnImage,
    UnsupportedImage,
)
from deepmcat_server.errors import (
    ArtifactNotFound,
    ArtifactRefused,
    DecoderUnavailable,
    EncoderUnavailable,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    ServerBusy,
    ServerClosing,
    ServerError,
    Unauthenticated,
)

DOMAIN = "deepmcat.dev"
INTERNAL_REASON = "INTERNAL"
DETAILS_TRAILER = "grpc-status-details-bin"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"  # gRFC A6: how long a retrying client waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an error travels. retry_s: after how long the caller may send the same again; None: never."""

    code: grpc.StatusCode
    retry_s: float | None = None


TABLE: dict[type[DeepmcatError], Outcome] = {
    NotAnImage: Outcome(code=grpc.StatusCode.INVALID_ARGUMENT),
    UnsupportedImage: Outcome(code=grpc.StatusCode.INVALID_ARGUMENT),
    CorruptImage: Outcome(code=grpc.StatusCode.INVALID_ARGUMENT),
    ImageTooLarge: Outcome(code=grpc.StatusCode.INVALID_ARGUMENT),
    FrameOutOfRange: Outcome(code=grpc.StatusCode.OUT_OF_RANGE),
    InferenceError: Outcome(code=grpc.StatusCode.INTERNAL),
    InvalidRequest: Outcome(code=grpc.StatusCode.INVALID_ARGUMENT),
    ArtifactNotFound: Outcome(code=grpc.StatusCode.NOT_FOUND),
    Unauthenticated: Outcome(code=grpc.StatusCode.UNAUTHENTICATED),
    PermissionDenied: Outcome(code=grpc.StatusCode.PERMISSION_DENIED),
    QuotaExceeded: Outcome(code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_s=1.0),
    ArtifactRefused: Outcome(code=grpc.StatusCode.FAILED_PRECONDITION),
    ServerBusy: Outcome(code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_s=0.5),
    DecoderUnavailable: Outcome(code=grpc.StatusCode.UNAVAILABLE, retry_s=1.0),
    EncoderUnavailable: Outcome(code=grpc.StatusCode.UNAVAILABLE, retry_s=1.0),
    ServerClosing: Outcome(code=grpc.StatusCode.UNAVAILABLE, retry_s=0.0),
}
INTERNAL = Outcome(code=grpc.StatusCode.INTERNAL)

REASONS = frozenset({INTERNAL_REASON, *(error.reason for error in TABLE)})
"""Every reason that can travel: a closed set, fit for a label."""


def outcome_of(error: BaseException) -> Outcome | None:
    """The entry of the nearest class of `error` in the table; None for what should not have happened."""
    for cls in type(error).__mro__:
        if (outcome := TABLE.get(cls)) is not None:
            return outcome
    return None


def reason_of(error: BaseException) -> str:
    """The reason of `error`, one of REASONS."""
    return error.reason if isinstance(error, DeepmcatError) and outcome_of(error) is not None else INTERNAL_REASON


def to_status(error: BaseException) -> Status:
    """`error` as google.rpc.Status with ErrorInfo and, where they apply, RetryInfo and BadRequest."""
    known = outcome_of(error)
    outcome = known or INTERNAL
    status = Status(code=outcome.code.value[0], message=str(error) if known else "internal error")
    status.details.add().Pack(ErrorInfo(reason=reason_of(error), domain=DOMAIN))
    if (wait_s := retry_s(error)) is not None:
        delay = Duration()
        delay.FromMilliseconds(_milliseconds(wait_s))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidRequest):
        violation = BadRequest.FieldViolation(field=error.field, description=str(error))
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    return status


def trailers(error: BaseException, status: Status) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a call that ends with `error`. Only fullness pushes back; a closing server redirects."""
    details = (DETAILS_TRAILER, status.SerializeToString())
    outcome, wait_s = outcome_of(error), retry_s(error)
    if outcome is None or outcome.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or wait_s is None:
        return (details,)
    return (details, (PUSHBACK_TRAILER, str(_milliseconds(wait_s))))


def retry_s(error: BaseException) -> float | None:
    """After how long the same may be sent again: what the error itself knows, else its class; None: never."""
    if isinstance(error, ServerError) and error.retry_s is not None:
        return error.retry_s
    return (outcome_of(error) or INTERNAL).retry_s


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)  # never before there is room
