"""What a call can end with, as one tree. The class says what happened; `reason` is the name it has on the wire.

ClientError
├── ImageError              this image has no answer; the others are not disturbed
│   ├── NotAnImage          a report, a plan, a waveform …: not a failure
│   ├── UnsupportedImage    a format or encoding that the server does not read
│   ├── CorruptImage        bytes that do not mean what they say
│   ├── ImageTooLarge       over a limit of the server, or of this client
│   ├── FrameOutOfRange     a frame that the image does not have
│   └── UnreadableFile      the file could not be read here; nothing was sent
├── RequestError            the caller has to change something
│   ├── InvalidRequest
│   ├── ArtifactNotFound    a pinned artifact that the server has not loaded
│   ├── ArtifactRefused     an artifact with which the server does not do what an administrator wants
│   ├── Unauthenticated
│   ├── PermissionDenied
│   └── MissingExtra        a package that this install lacks
├── TryAgain                the client has retried already; safe to send again later, or elsewhere
│   ├── ServerBusy          full
│   ├── QuotaExceeded       this caller has had its share
│   ├── ServerClosing       shutting down
│   ├── DecoderUnavailable  the server's decoders are restarting
│   ├── EncoderUnavailable  the Triton that runs its encoder does not answer
│   ├── Unavailable         nobody answers
│   └── Cancelled           the other side ended the call unbegun
├── DeadlineExceeded        no answer within timeout_s
└── ServerError             the server failed
    └── InferenceFailed     its encoder failed on the batch
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class ClientError(Exception):
    """The root. retry_after_s: how long the server asks to wait before trying again, None where it does not say."""

    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ImageError(ClientError):
    """An image that has no answer."""

    reason = "IMAGE_ERROR"


class NotAnImage(ImageError):
    """A DICOM object without pixels to categorise, such as a structured report."""

    reason = "NOT_AN_IMAGE"


class UnsupportedImage(ImageError):
    """A format or encoding that the server does not read."""

    reason = "UNSUPPORTED_IMAGE"


class CorruptImage(ImageError):
    """Bytes that do not mean what they say."""

    reason = "CORRUPT_IMAGE"


class ImageTooLarge(ImageError):
    """An image over one of the limits."""

    reason = "IMAGE_TOO_LARGE"


class FrameOutOfRange(ImageError):
    """A frame that the image does not have."""

    reason = "FRAME_OUT_OF_RANGE"


class UnreadableFile(ImageError):
    """A file that could not be read on this machine."""

    reason = "UNREADABLE_FILE"


class RequestError(ClientError):
    """A call that fails until the caller changes something."""

    reason = "REQUEST_ERROR"


class InvalidRequest(RequestError):
    """The server, or this client, does not accept an argument."""

    reason = "INVALID_REQUEST"


class ArtifactNotFound(RequestError):
    """The server has not loaded the artifact asked for."""

    reason = "ARTIFACT_NOT_FOUND"


class ArtifactRefused(RequestError):
    """The server does not do with an artifact what an administrator wants: it is damaged, in use, or too large."""

    reason = "ARTIFACT_REFUSED"


class Unauthenticated(RequestError):
    """The server does not know who is calling."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(RequestError):
    """The server knows who is calling and says no."""

    reason = "PERMISSION_DENIED"


class MissingExtra(RequestError):
    """A package that this install lacks; the message has the command that brings it."""

    reason = "MISSING_EXTRA"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 'deepmcat[{extra}]'")


class TryAgain(ClientError):
    """A call that can be sent again as it is."""

    reason = "TRY_AGAIN"


class ServerBusy(TryAgain):
    """The server is full."""

    reason = "SERVER_BUSY"


class QuotaExceeded(TryAgain):
    """The caller has had its share for now."""

    reason = "QUOTA_EXCEEDED"


class ServerClosing(TryAgain):
    """The server is shutting down and has not started on what was asked."""

    reason = "SERVER_CLOSING"


class DecoderUnavailable(TryAgain):
    """The server's decoding workers are restarting."""

    reason = "DECODER_UNAVAILABLE"


class EncoderUnavailable(TryAgain):
    """The Triton that runs the server's encoder does not answer."""

    reason = "ENCODER_UNAVAILABLE"


class Unavailable(TryAgain):
    """Nobody answers at the address."""

    reason = "UNAVAILABLE"


class Cancelled(TryAgain):
    """The other side cancelled the call: gRPC does so with calls that arrive in the moment in which a server stops."""

    reason = "CANCELLED"


class DeadlineExceeded(ClientError):
    """There was no answer in time."""

    reason = "DEADLINE_EXCEEDED"


class ServerError(ClientError):
    """The server failed."""

    reason = "INTERNAL"


class InferenceFailed(ServerError):
    """The server's encoder failed on the batch."""

    reason = "INFERENCE_FAILED"


def _tree(root: type[ClientError]) -> Iterator[type[ClientError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


BY_REASON: dict[str, type[ClientError]] = {
    error.reason: error for error in _tree(ClientError) if error is not MissingExtra
}
"""The classes by the reason that travels on the wire (ErrorInfo.reason, domain deepmcat.dev)."""
