"""What can go wrong in a server only, continuing the core's tree.

DeepmcatError
└── ServerError
    ├── InvalidRequest       a request that no server could answer; names the field
    ├── ArtifactNotFound     a pin to an artifact that is not loaded, or a name or version that there is none of
    ├── ArtifactRefused      an administrator's wish that this artifact cannot have: damaged, in use, no room
    ├── Unauthenticated      the caller does not show who it is, or what it shows does not hold
    ├── PermissionDenied     the caller is known and may not do this
    ├── QuotaExceeded        the caller has had its share: safe to retry, and it says when
    ├── ServerBusy           no room, or no time: safe to retry
    ├── DecoderUnavailable   the decoding workers are restarting: safe to retry
    ├── EncoderUnavailable   the Triton that runs the encoder does not answer: safe to retry
    └── ServerClosing        shutting down: safe to send elsewhere

Codes and retries are in status.py. Messages never repeat what a caller sent, except numbers, and never who it is.
"""

from __future__ import annotations

from deepmcat_core.errors import DeepmcatError


class ServerError(DeepmcatError):
    """A call or an image that this server refuses, whatever the image shows.

    retry_s: after how long the same can be sent again, where this refusal knows; None: what the table says of it.
    """

    def __init__(self, message: str, *, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class InvalidRequest(ServerError):
    """A request that no server could answer. field: its path in the request, for google.rpc.BadRequest."""

    reason = "INVALID_REQUEST"

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class ArtifactNotFound(ServerError):
    """The artifact that a request names is not loaded, or there is none."""

    reason = "ARTIFACT_NOT_FOUND"


class Unauthenticated(ServerError):
    """The caller shows neither a certificate nor a token that says who it is."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(ServerError):
    """The caller is known and lacks the scope of the method."""

    reason = "PERMISSION_DENIED"


class QuotaExceeded(ServerError):
    """The caller has had its share of images or bytes for now."""

    reason = "QUOTA_EXCEEDED"


class ArtifactRefused(ServerError):
    """What an administrator wants cannot be done with this artifact."""

    reason = "ARTIFACT_REFUSED"


class ServerBusy(ServerError):
    """There is no room for an image, or it could not be answered in its time."""

    reason = "SERVER_BUSY"


class DecoderUnavailable(ServerError):
    """The decoding workers cannot take an image just now."""

    reason = "DECODER_UNAVAILABLE"


class EncoderUnavailable(ServerError):
    """The Triton that runs the encoder does not answer, or not in time."""

    reason = "ENCODER_UNAVAILABLE"


class ServerClosing(ServerError):
    """The server is shutting down."""

    reason = "SERVER_CLOSING"
