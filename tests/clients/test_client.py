"""Unary calls, retries, errors by reason, and the client for code without asyncio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import AsyncClient, Client, Options, RawPlane, RetryPolicy
from deepmcat_client.errors import (
    BY_REASON,
    ArtifactNotFound,
    ClientError,
    CorruptImage,
    DeadlineExceeded,
    InvalidRequest,
    PermissionDenied,
    ServerBusy,
    ServerError,
    Unavailable,
)
from deepmcat_client.status import from_status

from .fakes import ARTIFACT_ID, FakeServicer, fail, serving, serving_in_thread, status

QUICK = RetryPolicy(attempts=3, first_s=0.001, most_s=0.002)


async def test_the_answer_is_typed() -> None:
    """Everything of a Categorization arrives in its dataclass."""
    async with serving(FakeServicer()) as address, AsyncClient(address) as client:
        answer = await client.categorize(b"12345")

    assert (answer.assignment.category, answer.assignment.cluster_id, answer.assignment.distance) == (
        "CT CHEST",
        5,
        0.25,
    )
    assert (answer.assignment.p_value, answer.assignment.outlier) == (0.5, False)
    assert [candidate.category_id for candidate in answer.assignment.candidates] == ["c-1"]
    assert [frame.frame_number for frame in answer.frames] == [1]
    assert (
        answer.flags, answer.embedding, answer.artifact_id, answer.catalog_version,
    ) == (("DERIVED",), None, ARTIFACT_ID, 1)  # fmt: skip


async def test_a_verdict_that_is_absent_is_none() -> None:
    """No p-value is None, not 0: an artifact with few calibration images gives no verdict."""
    from deepmcat_client.wire import categorization

    answer = categorization(pb.Categorization(assignment=pb.Assignment(category="CT")))

    assert (answer.assignment.p_value, answer.assignment.outlier) == (None, None)


async def test_an_embedding_is_floats() -> None:
    """The packed embedding reads as float32 without numpy."""
    from deepmcat_client.wire import categorization

    message = pb.Categorization(embedding=pb.Embedding(type=1, dim=2, data=b"\x00\x00\x80?\x00\x00\x00\xbf"))
    embedding = categorization(message).embedding

    assert embedding is not None
    assert list(embedding.floats()) == [1.0, -0.5]


async def test_a_raw_plane_says_what_it_is() -> None:
    """Rows, columns, sample type and polarity of a raw plane reach the server."""
    seen: list[pb.CategorizeRequest] = []

    async def look(servicer: FakeServicer, request: pb.CategorizeRequest, context: Any) -> None:
        seen.append(request)

    async with serving(FakeServicer(unary=look)) as address, AsyncClient(address) as client:
        plane = RawPlane(rows=1, columns=2, sample_type="int16", data=b"abcd", inverted=True)
        await client.categorize(plane, Options(top_k=4))

    expected = pb.RawPlane(rows=1, columns=2, sample_type=3, photometric_interpretation=1, data=b"abcd")
    assert expected == seen[0].image.raw
    assert seen[0].options.top_k == 4


async def test_a_large_image_needs_no_stream_of_the_callers() -> None:
    """`categorize` sends a file over 1 MiB in chunks by itself."""
    servicer = FakeServicer()
    async with serving(servicer) as address, AsyncClient(address) as client:
        answer = await client.categorize(b"x" * (3 * 2**20))

    assert answer.assignment.cluster_id == 3 * 2**20
    assert (servicer.unary_calls, servicer.stream_calls) == (0, 1)


@pytest.mark.parametrize(
    ("reason", "error"), [("CORRUPT_IMAGE", CorruptImage), ("ARTIFACT_NOT_FOUND", ArtifactNotFound)]
)
async def test_errors_are_typed_by_reason(reason: str, error: type[ClientError]) -> None:
    """The reason in ErrorInfo decides the class, the message is the server's, and nothing is retried."""

    async def refuse(servicer: FakeServicer, request: pb.CategorizeRequest, context: Any) -> None:
        await fail(context, reason)

    servicer = FakeServicer(unary=refuse)
    async with serving(servicer) as address, AsyncClient(address, retry=QUICK) as client:
        with pytest.raises(error, match=f"the server says {reason}"):
            await client.categorize(b"x")
    assert servicer.unary_calls == 1


def test_every_reason_of_the_contract_has_a_class() -> None:
    """The reasons of the design's table, and each class knows its own."""
    reasons = (
        "NOT_AN_IMAGE UNSUPPORTED_IMAGE CORRUPT_IMAGE IMAGE_TOO_LARGE FRAME_OUT_OF_RANGE INFERENCE_FAILED "
        "INVALID_REQUEST ARTIFACT_NOT_FOUND UNAUTHENTICATED PERMISSION_DENIED QUOTA_EXCEEDED SERVER_BUSY "
        "DECODER_UNAVAILABLE ENCODER_UNAVAILABLE SERVER_CLOSING INTERNAL"
    )
    assert set(reasons.split()) <= BY_REASON.keys()
    assert all(reason == error.reason for reason, error in BY_REASON.items())


def test_a_foreign_reason_falls_back_to_the_code() -> None:
    """Another domain's ErrorInfo, or a reason of a later release, leaves the gRPC code to decide."""
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason="SERVER_BUSY", domain="elsewhere.example"))
    code = grpc.StatusCode.PERMISSION_DENIED.value[0]

    assert isinstance(from_status(Status(code=code, details=[detail])), PermissionDenied)
    assert isinstance(from_status(Status(code=grpc.StatusCode.DATA_LOSS.value[0])), ServerError)


def test_an_over_long_message_is_not_a_busy_server() -> None:
    """gRPC's own RESOURCE_EXHAUSTED is not retried; with a pushback trailer it is a busy server."""
    exhausted = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])

    assert isinstance(from_status(exhausted), InvalidRequest)
    assert isinstance(from_status(exhausted, 0.1), ServerBusy)


async def test_a_busy_server_is_asked_again_after_the_wait_it_asks_for() -> None:
    """SERVER_BUSY is retried, and not before its pushback has passed."""
    times: list[float] = []

    async def busy(servicer: FakeServicer, request: pb.CategorizeRequest, context: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            await fail(context, "SERVER_BUSY", retry_s=0.2)

    async with serving(FakeServicer(unary=busy)) as address, AsyncClient(address, retry=QUICK) as client:
        await client.categorize(b"x")

    assert len(times) == 2
    assert times[1] - times[0] >= 0.2


def delays(policy: RetryPolicy, error: ClientError, failures: int) -> list[float]:
    """What a policy waits, many times over."""
    found = [policy.delay_s(error, failures) for _ in range(200)]
    return [delay for delay in found if delay is not None]


def test_waits_are_full_jitter_after_what_the_server_asks_for() -> None:
    """Never before the server's pushback, spread over all of a bound that doubles and has an end."""
    policy = RetryPolicy(attempts=9, first_s=0.1, most_s=0.3)

    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.3), (8, 0.3)):
        waits = delays(policy, Unavailable(""), failures)
        assert max(waits) <= bound
        assert min(waits) < bound / 4 < 3 * bound / 4 < max(waits)
    busy = delays(policy, from_status(status("SERVER_BUSY", retry_s=0.5)), 1)
    assert 0.5 <= min(busy) < max(busy) <= 0.6


def test_too_long_a_wait_or_too_many_are_the_callers_turn() -> None:
    """A pushback over the bound, a negative one (gRFC A6: do not retry), and the last failure are not waited for."""
    policy = RetryPolicy(attempts=3, longest_pushback_s=60)

    assert policy.delay_s(from_status(status("SERVER_BUSY", retry_s=61)), 1) is None
    assert policy.delay_s(from_status(status("SERVER_BUSY"), float("inf")), 1) is None
    assert policy.delay_s(Unavailable(""), 2) is not None
    assert policy.delay_s(Unavailable(""), 3) is None


async def test_a_server_that_stays_busy_is_given_up() -> None:
    """Retries are bounded, then the error is the caller's."""

    async def busy(servicer: FakeServicer, request: pb.CategorizeRequest, context: Any) -> None:
        await fail(context, "SERVER_BUSY", retry_s=0.001)

    servicer = FakeServicer(unary=busy)
    async with serving(servicer) as address, AsyncClient(address, retry=QUICK) as client:
        with pytest.raises(ServerBusy):
            await client.categorize(b"x")
    assert QUICK.attempts == servicer.unary_calls


async def test_the_deadline_holds() -> None:
    """A server that is too slow ends in DeadlineExceeded, for small and for chunked images."""

    async def slow(servicer: FakeServicer, request: pb.CategorizeRequest, context: Any) -> None:
        await asyncio.sleep(30)

    async def slow_stream(servicer: Any, call: int, images: Any, context: Any) -> Any:
        async for _ in images:
            await asyncio.sleep(30)
            yield pb.CategorizeStreamResponse()

    servicer = FakeServicer(unary=slow, stream=slow_stream)
    async with serving(servicer) as address, AsyncClient(address, timeout_s=0.3) as client:
        for image in (b"x", b"x" * (2**20 + 1)):
            with pytest.raises(DeadlineExceeded):
                await client.categorize(image)


async def test_nobody_there_is_a_sentence_with_the_address() -> None:
    """Where nothing listens the error names the address, and a stream raises it too."""
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await client.categorize(b"x")
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            async for _ in client.categorize_stream([(1, b"x")]):
                pass


async def test_a_closed_client_says_so() -> None:
    """A client outside its `with` is a programming error."""
    with pytest.raises(RuntimeError, match="with"):
        await AsyncClient("127.0.0.1:1").get_artifact()
    with pytest.raises(RuntimeError, match="with"):
        Client("127.0.0.1:1").get_artifact()


def test_the_plain_client_does_the_same(tmp_path: Path) -> None:
    """Every method of Client, without asyncio, files included."""
    (tmp_path / "image").write_bytes(b"1234")
    with serving_in_thread(FakeServicer()) as address, Client(address) as client:
        one = client.categorize(tmp_path / "image")
        many = list(client.categorize_stream((n, b"x" * n) for n in range(1, 40)))
        info, catalog = client.get_artifact(), client.list_categories()
        with pytest.raises(ArtifactNotFound):
            client.get_artifact("b" * 64)

    assert one.assignment.cluster_id == 4
    assert list(range(1, 40)) == [key for key, _ in many]
    assert (info.artifact.encoder, info.artifact.preprocessing.size) == ("efficientnet_lite0", 128)
    assert info.serving is not None
    assert info.serving.limits.max_stream_in_flight == 64
    assert (
        catalog.categories[0].status, catalog.categories[0].fit_images, catalog.categories[0].terms[0].value,
    ) == ("suggested", 12, "CT")  # fmt: skip


def test_two_plain_clients_live_side_by_side() -> None:
    """Clients share a loop thread; closing one leaves the other open, and leaving a stream early is clean."""
    with serving_in_thread(FakeServicer()) as address, Client(address) as first:
        with Client(address) as second:
            for _ in second.categorize_stream((n, b"x") for n in range(1000)):
                break
        assert first.categorize(b"x").assignment.cluster_id == 1


def test_a_generator_may_use_the_client_it_feeds() -> None:
    """The iterable runs beside the loop, so a call inside it is no deadlock."""
    with serving_in_thread(FakeServicer()) as address, Client(address) as client:
        sizes = (client.categorize(b"x" * n).assignment.cluster_id for n in range(1, 4))
        answers = list(client.categorize_stream((n, b"x" * n) for n in sizes))

    assert [key for key, _ in answers] == [1, 2, 3]


def test_a_client_needs_neither_torch_nor_numpy() -> None:
    """Importing the client, its command line included, imports nothing heavy."""
    code = (
        "import sys, deepmcat_client, deepmcat_client.cli, deepmcat_client.commands.categorize, "
        "deepmcat_client.commands.describe, deepmcat_client.commands.doctor, deepmcat_client.commands.demo\n"
        "heavy = {'numpy', 'torch', 'pydicom', 'faiss', 'deepmcat_core', 'deepmcat_server', 'deepmcat_trainer'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
