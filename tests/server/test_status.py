"""The one table of errors."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from deepmcat_core import errors as core
from deepmcat_server import errors as server
from deepmcat_server.status import PUSHBACK_TRAILER, TABLE, outcome_of, reason_of, to_status, trailers

INTERNAL_ONLY = {
    core.DeepmcatError, core.ImageError, server.ServerError,
    core.ArtifactError, core.ArtifactMissing, core.ArtifactFormat, core.ArtifactDamaged, core.ArtifactSelfTest,
    core.ConfigError, core.MissingExtra,
}  # fmt: skip


def test_every_error_has_its_place():
    """Every error class is in the table, or is one that stops a start and never answers a call."""
    defined = {
        value
        for module in (core, server)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, core.DeepmcatError)
    }
    assert defined == set(TABLE) | INTERNAL_ONLY


def test_subclasses_travel_as_what_they_are():
    """A class that the table does not name travels as the nearest of its bases that it does."""

    class TruncatedImage(core.CorruptImage):
        pass

    assert outcome_of(TruncatedImage("short")) is TABLE[core.CorruptImage]
    assert reason_of(TruncatedImage("short")) == "CORRUPT_IMAGE"


@pytest.mark.parametrize(
    "error", [KeyError("SECRET"), core.ConfigError("/home/SECRET"), core.ArtifactDamaged("SECRET")]
)
def test_anything_else_is_internal_and_says_nothing(error):
    """What should not have happened travels without its text."""
    status = to_status(error)
    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL.value[0], "internal error")
    assert b"SECRET" not in status.SerializeToString()


def test_details_say_what_to_do():
    """Retriable errors carry a delay, invalid requests the field, all of them domain and reason."""
    busy = to_status(server.ServerBusy("full"))
    info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
    assert busy.details[0].Unpack(info)
    assert busy.details[1].Unpack(retry)
    assert (info.domain, info.reason) == ("deepmcat.dev", "SERVER_BUSY")
    assert retry.retry_delay.ToMilliseconds() > 0

    invalid = to_status(server.InvalidRequest("rows is 0", "image.raw.rows"))
    assert invalid.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "image.raw.rows"


def test_an_error_that_knows_when_says_when():
    """The delay of a refusal that was computed goes before that of its class, in both places, rounded up."""
    error = server.QuotaExceeded("enough", retry_s=2.3401)
    retry = RetryInfo()
    assert to_status(error).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2341
    assert dict(trailers(error, to_status(error)))[PUSHBACK_TRAILER] == "2341"


def test_only_a_full_server_pushes_back():
    """The pushback trailer is for fullness: a closing server wants its callers elsewhere, at once."""
    for error, expected in [
        (server.ServerBusy("full"), True),
        (server.QuotaExceeded("enough"), True),
        (server.Unauthenticated("who"), False),
        (server.ServerClosing("closing"), False),
        (core.CorruptImage("cut off"), False),
    ]:
        assert (PUSHBACK_TRAILER in dict(trailers(error, to_status(error)))) is expected
