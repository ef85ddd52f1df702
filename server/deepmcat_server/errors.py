"""What can go wrong in a server only, continuing the core's tree.

DeepmcatError
└── ServerError
    ├── InvalidRequest       a request that no server could answer; names the field
    ├── ArtifactNotFound     a pin to an artifact that is not loaded
    ├── ServerBusy           no room, or no time: safe to retry
    ├── DecoderUnavailable   the decoding workers are restarting: safe to retry
    └── ServerClosing        shutting down: safe to send elsewhere

Codes and retries are in status.py. Messages never repeat what a caller sent, except numbers.
"""

from __future__ import annotations

from deepmcat_core.errors import DeepmcatError


class ServerError(DeepmcatError):
    """A call or an image that this server refuses, whatever the image shows."""


class InvalidRequest(ServerError):
    """A request that no server could answer. field: its path in the request, for google.rpc.BadRequest."""

    reason = "INVALID_REQUEST"

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class ArtifactNotFound(ServerError):
    """The artifact that a request pins is not loaded."""

    reason = "ARTIFACT_NOT_FOUND"


class ServerBusy(ServerError):
    """There is no room for an image, or it could not be answered in its time."""

    reason = "SERVER_BUSY"


class DecoderUnavailable(ServerError):
    """The decoding workers cannot take an image just now."""

    reason = "DECODER_UNAVAILABLE"


class ServerClosing(ServerError):
    """The server is shutting down."""

    reason = "SERVER_CLOSING"
