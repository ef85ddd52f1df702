"""Quotas: buckets by a clock that a test turns, and what callers of a whole server see of them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server import quotas
from deepmcat_server.errors import QuotaExceeded
from deepmcat_server.quotas import Quota, Quotas
from deepmcat_server.status import reason_of, to_status


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    return Clock()


def test_a_burst_then_the_rate(clock: Clock) -> None:
    """burst_s seconds' worth go at once, then so many a second, and the refusal says exactly when the next may come."""
    limited = Quotas(Quota(images_per_s=2, burst_s=5), clock=clock)
    for _ in range(10):
        limited.take("a", 1)
    with pytest.raises(QuotaExceeded, match=r"quota of images .* in 0\.5 s") as caught:
        limited.take("a", 1)
    clock.now += 0.5
    limited.take("a", 1)
    with pytest.raises(QuotaExceeded):
        limited.take("a", 1)
    clock.now += 1000
    for _ in range(10):
        limited.take("a", 1)
    with pytest.raises(QuotaExceeded):
        limited.take("a", 1)

    retry = RetryInfo()
    assert to_status(caught.value).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 500


def test_bytes_have_a_bucket_of_their_own(clock: Clock) -> None:
    """What is larger than a burst gets in when the bucket is full, and the next waits until the average holds."""
    limited = Quotas(Quota(bytes_per_s=100, burst_s=1), clock=clock)
    limited.take("a", 1000)
    with pytest.raises(QuotaExceeded, match="quota of bytes") as caught:
        limited.take("a", 1)
    assert caught.value.retry_s == pytest.approx(9.01)
    clock.now += 9.02
    limited.take("a", 1)


def test_callers_do_not_share(clock: Clock) -> None:
    """One caller's use is no other's, patterns give some another quota, and the first that fits wins."""
    overrides = {"jwt:vna": Quota(), "jwt:*": Quota(images_per_s=1, burst_s=2)}
    limited = Quotas(Quota(images_per_s=1, burst_s=1), overrides, clock=clock)
    for caller, allowed in (("ip:10.0.0.1", 1), ("ip:10.0.0.2", 1), ("jwt:pacs", 2)):
        for _ in range(allowed):
            limited.take(caller, 1)
        with pytest.raises(QuotaExceeded):
            limited.check(caller)
    for _ in range(1000):
        limited.take("jwt:vna", 10**9)


def test_the_table_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many callers the one seen longest ago is forgotten, and no other."""
    monkeypatch.setattr(quotas, "MAX_CALLERS", 2)
    limited = Quotas(Quota(images_per_s=1, burst_s=1), clock=clock)
    for caller in ("a", "b"):
        limited.take(caller, 1)
    with pytest.raises(QuotaExceeded):
        limited.check("a")
    limited.take("c", 1)  # b goes

    limited.take("b", 1)  # and a now
    with pytest.raises(QuotaExceeded):
        limited.take("c", 1)
    limited.take("a", 1)


def test_asking_takes_nothing(clock: Clock) -> None:
    """The look at the door leaves the image its room."""
    limited = Quotas(Quota(images_per_s=1, burst_s=1), clock=clock)
    for _ in range(3):
        limited.check("a")
    limited.take("a", 1)


async def test_waiting_is_in_turn_and_gives_back(clock: Clock) -> None:
    """Who waits has its room reserved; who cannot wait so long is refused; who leaves gives it back."""
    limited = Quotas(Quota(images_per_s=1, burst_s=1), clock=clock)
    loop = asyncio.get_running_loop()
    limited.take("a", 1)
    first = asyncio.create_task(limited.wait("a", 1, loop.time() + 60))
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceeded) as caught:
        await limited.wait("a", 1, loop.time() + 1.5)
    assert caught.value.retry_s == 2
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    with pytest.raises(QuotaExceeded) as caught:
        limited.take("a", 1)
    assert caught.value.retry_s == 1


async def test_a_unary_call_over_its_quota(serving: Any, pngs: Any, request_of: Any) -> None:
    """It ends with QUOTA_EXCEEDED and both delays before its request is read; reading the catalog costs nothing."""
    async with serving(quota_images_per_s=0.001, quota_burst_s=1000) as served:
        await served.stub.Categorize(request_of(pngs[0]))
        unsent = served.channel.stream_unary("/deepmcat.v1.CategorizationService/Categorize")()
        code, trailers = await unsent.code(), dict(await unsent.trailing_metadata())
        await served.stub.GetArtifact(pb.GetArtifactRequest())
        refused = served.scraped["deepmcat_images_total result=ok"]

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 900_000 < int(trailers["grpc-retry-pushback-ms"]) <= 1_000_000
    assert reason_of(QuotaExceeded("")) == "QUOTA_EXCEEDED"
    assert refused == 1


async def test_a_stream_goes_at_its_quota(serving: Any, pngs: Any, request_of: Any) -> None:
    """In a stream the quota is flow control: images beyond it wait for their turn, and none is refused."""
    messages = [pb.CategorizeStreamRequest(item=request_of(png, str(i))) for i, png in enumerate(pngs * 2)]
    async with serving(quota_images_per_s=40, quota_burst_s=0.05) as served:
        answers = [answer async for answer in served.stub.CategorizeStream(iter(messages))]

    assert [answer.WhichOneof("result") for answer in answers] == ["categorization"] * 8


async def test_an_image_that_cannot_wait_is_refused_alone(serving: Any, pngs: Any, request_of: Any) -> None:
    """Where the quota has no room within an image's time it gets QUOTA_EXCEEDED, chunked or not; the stream goes on."""
    first, late = request_of(pngs[0], "first"), request_of(pngs[1], "late", timeout_ms=100)
    announced = pb.CategorizeRequest(
        item_id="chunked",
        image=pb.Image(chunked=pb.ChunkedContent(size_bytes=5)),
        options=pb.CategorizeOptions(timeout_ms=100),
    )
    messages = [pb.CategorizeStreamRequest(item=item) for item in (first, late, announced)]
    messages.append(pb.CategorizeStreamRequest(chunk=b"12345"))
    async with serving(quota_images_per_s=0.001, quota_burst_s=1000) as served:
        answers = [answer async for answer in served.stub.CategorizeStream(iter(messages))]
        counted = served.scraped["deepmcat_images_total result=quota_exceeded"]

    assert [(a.item_id, a.WhichOneof("result")) for a in answers] == [
        ("first", "categorization"), ("late", "error"), ("chunked", "error"),
    ]  # fmt: skip
    assert {a.error.code for a in answers[1:]} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert counted == 2
