"""Categorize, GetArtifact and ListCategories over a real channel."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.planes import read_planes


async def refused(call: Any) -> tuple[grpc.aio.AioRpcError, dict[str, Any]]:
    """The error that a call ends with, and its details by name."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    status = Status.FromString(trailers["grpc-status-details-bin"])
    details: dict[str, Any] = {"trailers": trailers}
    for any_message in status.details:
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            message = kind()
            if any_message.Unpack(message):
                details[kind.__name__] = message
    assert status.message == caught.value.details()
    assert details["ErrorInfo"].domain == "deepmcat.dev"
    return caught.value, details


async def test_an_image_gets_its_category(serving, pngs, request_of):
    """A call answers with the cluster, category, artifact and catalog version that the library gives."""
    async with serving() as served:
        response = await served.stub.Categorize(request_of(pngs[2], "mine", top_k=9))
        (expected,) = served.categorizer.categorize([pngs[2]])

    answer = response.categorization
    assert response.item_id == "mine"
    assert (answer.assignment.cluster_id, answer.assignment.category) == (2, "MR head")
    assert answer.assignment.category_id == expected.assignment.category_id
    assert answer.assignment.p_value == pytest.approx(expected.assignment.p_value)
    assert answer.assignment.outlier is False
    assert [c.category for c in answer.assignment.candidates] == ["MR head", "CT chest"]
    assert [f.frame_number for f in answer.frames] == [1]
    assert (answer.total_frames, answer.catalog_version) == (1, 1)
    assert answer.artifact_id == served.categorizer.artifact.artifact_id
    assert not answer.HasField("embedding")


async def test_embedding_only_where_wanted(serving, pngs, request_of):
    """want_embedding brings the unit vector as packed little-endian floats."""
    async with serving() as served:
        response = await served.stub.Categorize(request_of(pngs[1], want_embedding=True))

    embedding = response.categorization.embedding
    vector = np.frombuffer(embedding.data, "<f4")
    assert (embedding.type, embedding.dim) == (pb.EMBEDDING_TYPE_FLOAT32, len(vector))
    np.testing.assert_allclose(vector, served.categorizer.artifact.centroids[1], atol=1e-3)


async def test_outlier_is_unknown(serving, request_of):
    """An image far from every centroid has the reserved category and still its nearest candidates."""
    noise = np.random.default_rng(99).integers(0, 256, size=(32, 32), dtype=np.uint8)
    async with serving() as served:
        image = pb.Image(raw=pb.RawPlane(rows=32, columns=32, sample_type=pb.SAMPLE_TYPE_UINT8, data=noise.tobytes()))
        response = await served.stub.Categorize(pb.CategorizeRequest(image=image))

    assignment = response.categorization.assignment
    assert assignment.outlier
    assert (assignment.category_id, assignment.category) == ("unknown", "unknown")
    assert {c.category for c in assignment.candidates} == {"CT chest", "MR head"}
    assert served.scraped["deepmcat_outliers_total"] == 1


async def test_raw_plane_is_the_image_it_holds(serving, draft):
    """Raw planes of every sample type, MONOCHROME1 inverted, end up in the cluster of their pixels."""
    pixels = draft.self_test.images[3, 0]
    kinds = {
        pb.SAMPLE_TYPE_UINT8: pixels,
        pb.SAMPLE_TYPE_UINT16: pixels.astype("<u2") * 16,
        pb.SAMPLE_TYPE_INT16: pixels.astype("<i2") - 1024,
        pb.SAMPLE_TYPE_FLOAT32: pixels.astype("<f4") / 255,
    }
    async with serving() as served:
        for kind, samples in kinds.items():
            raw = pb.RawPlane(rows=32, columns=32, sample_type=kind, data=samples.tobytes())
            response = await served.stub.Categorize(pb.CategorizeRequest(image=pb.Image(raw=raw)))
            assert response.categorization.assignment.cluster_id == 3, kind
        inverted = pb.RawPlane(
            rows=32,
            columns=32,
            sample_type=pb.SAMPLE_TYPE_UINT8,
            photometric_interpretation=pb.PHOTOMETRIC_INTERPRETATION_MONOCHROME1,
            data=(255 - pixels).tobytes(),
        )
        response = await served.stub.Categorize(pb.CategorizeRequest(image=pb.Image(raw=inverted)))
    assert response.categorization.assignment.cluster_id == 3


RAW = {"rows": 2, "columns": 2, "sample_type": pb.SAMPLE_TYPE_UINT16, "data": bytes(8)}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CategorizeRequest(), "image"),
        (pb.CategorizeRequest(image=pb.Image(encoded=b"")), "image.encoded"),
        (pb.CategorizeRequest(item_id="ü" * 33, image=pb.Image(encoded=b"x")), "item_id"),
        (pb.CategorizeRequest(image=pb.Image(chunked=pb.ChunkedContent(size_bytes=5))), "image.chunked"),
        (pb.CategorizeRequest(options=pb.CategorizeOptions(frames=65)), "options.frames"),
        (pb.CategorizeRequest(image=pb.Image(raw=pb.RawPlane(**(RAW | {"rows": 0})))), "image.raw.rows"),
        (pb.CategorizeRequest(image=pb.Image(raw=pb.RawPlane(**(RAW | {"data": bytes(7)})))), "image.raw.data"),
        (
            pb.CategorizeRequest(image=pb.Image(raw=pb.RawPlane(**(RAW | {"sample_type": 9})))),
            "image.raw.sample_type",
        ),
    ],
)
async def test_invalid_requests_name_the_field(serving, request_, field):
    """A request that no server could answer ends with INVALID_REQUEST and the path of the field."""
    async with serving() as served:
        error, details = await refused(served.stub.Categorize(request_))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"].reason == "INVALID_REQUEST"
    assert details["BadRequest"].field_violations[0].field == field
    assert "RetryInfo" not in details


async def test_images_that_cannot_be_read(serving, pngs, request_of):
    """Bytes that are no image, or a damaged one, end the call with INVALID_ARGUMENT and the reason."""
    async with serving() as served:
        nothing, about_nothing = await refused(served.stub.Categorize(request_of(b"hello" * 40)))
        damaged, about_damaged = await refused(served.stub.Categorize(request_of(pngs[0][:60])))

    assert nothing.code() is damaged.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert about_nothing["ErrorInfo"].reason in {"UNSUPPORTED_IMAGE", "NOT_AN_IMAGE"}
    assert about_damaged["ErrorInfo"].reason == "CORRUPT_IMAGE"


async def test_too_large_is_refused(serving, pngs, request_of):
    """An image over max_image_bytes, and a side over max_side, is IMAGE_TOO_LARGE before any work."""
    wide = pb.RawPlane(rows=1, columns=65, sample_type=pb.SAMPLE_TYPE_UINT8, data=bytes(65))
    async with serving(max_image_bytes=100, max_side=64) as served:
        for request in (request_of(pngs[0]), pb.CategorizeRequest(image=pb.Image(raw=wide))):
            error, details = await refused(served.stub.Categorize(request))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert details["ErrorInfo"].reason == "IMAGE_TOO_LARGE"
    assert served.engine.batches == []


async def test_pin_to_another_artifact(serving, pngs, request_of):
    """Every method answers for the artifact in force only, and NOT_FOUND for another pin."""
    async with serving() as served:
        own = served.categorizer.artifact.artifact_id
        await served.stub.Categorize(request_of(pngs[0], artifact_id=own))
        for call in (
            served.stub.Categorize(request_of(pngs[0], artifact_id="0" * 64)),
            served.stub.GetArtifact(pb.GetArtifactRequest(artifact_id="0" * 64)),
            served.stub.ListCategories(pb.ListCategoriesRequest(artifact_id="0" * 64)),
        ):
            error, details = await refused(call)
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert details["ErrorInfo"].reason == "ARTIFACT_NOT_FOUND"


async def test_artifact_and_categories_are_described(serving):
    """GetArtifact and ListCategories tell what is served, its limits and its calibration."""
    async with serving(max_queue=7, default_timeout_s=2) as served:
        described = await served.stub.GetArtifact(pb.GetArtifactRequest())
        listed = await served.stub.ListCategories(pb.ListCategoriesRequest())

    artifact = described.artifact
    assert (artifact.clusters, artifact.categories, artifact.dim, artifact.catalog_version) == (4, 2, 16, 1)
    assert (artifact.preprocessing.size, artifact.preprocessing.frames, artifact.recipe) == (32, 3, "test")
    assert artifact.calibration.images == 300
    assert artifact.calibration.has_verdicts
    assert artifact.calibration.note == served.categorizer.artifact.calibration.note()
    assert (described.limits.max_queue, described.limits.default_timeout_ms) == (7, 2000)
    assert described.limits.max_chunk_bytes == 2**20
    assert (described.engine, described.device, described.precision) == ("random-projection", "cpu", "float32")
    assert any(name.startswith("pydicom ") for name in described.decoders)
    assert [c.name for c in listed.categories] == ["CT chest", "MR head"]
    assert [list(c.cluster_ids) for c in listed.categories] == [[0, 1], [2, 3]]
    assert listed.categories[0].status == pb.CATEGORY_STATUS_SUGGESTED


async def test_full_server_refuses_at_once(serving, pngs, request_of, until):
    """A unary call that finds the server full ends at once with SERVER_BUSY, a delay, and the pushback trailer."""
    async with serving(max_queue=1) as served:
        served.engine.free.clear()
        first = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(served.engine.entered.is_set)
        error, details = await refused(served.stub.Categorize(request_of(pngs[1])))
        served.engine.free.set()
        answer = await first

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "SERVER_BUSY"
    delay_ms = details["RetryInfo"].retry_delay.ToMilliseconds()
    assert 500 <= delay_ms <= 750
    assert details["trailers"]["grpc-retry-pushback-ms"] == str(delay_ms)
    assert answer.categorization.assignment.cluster_id == 0


async def test_late_and_cancelled_calls_are_not_encoded(serving, pngs, request_of, until):
    """Work that nobody waits for any more leaves the queue before the engine sees it."""
    async with serving() as served:
        served.engine.free.clear()
        first = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(served.engine.entered.is_set)
        late = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[1]), timeout=0.3))
        dropped = served.stub.Categorize(request_of(pngs[2]))
        dropping = asyncio.ensure_future(dropped)
        await until(lambda: served.running.batcher.depth == 2)
        dropped.cancel()
        await asyncio.gather(dropping, return_exceptions=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late
        await until(lambda: served.running.batcher.depth == 0)
        served.engine.free.set()
        await first

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.engine.batches == [1]
    assert served.running.admission.images == 0
    left = [served.scraped[f"deepmcat_{why}_total stage=queue"] for why in ("expired", "cancelled")]
    assert left == [1, 1]


async def test_a_call_can_allow_less_than_its_deadline(serving, pngs, request_of, until):
    """A call whose options allow it less time than its deadline ends with SERVER_BUSY when that is over."""
    async with serving() as served:
        served.engine.free.clear()
        first = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(served.engine.entered.is_set)
        error, details = await refused(served.stub.Categorize(request_of(pngs[1], timeout_ms=50), timeout=20))
        served.engine.free.set()
        await first

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "SERVER_BUSY"
    assert served.engine.batches == [1]


async def test_a_call_that_would_be_late_is_refused_at_once(serving, pngs, request_of, until):
    """A call that cannot be answered before its deadline ends at once, not at its deadline, and costs no work."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]))  # now the server knows how long it takes
        served.engine.entered.clear()
        served.engine.free.clear()
        held = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(served.engine.entered.is_set)
        await asyncio.sleep(0.3)  # the batch in progress is that late, and expected to be as late again
        error, details = await refused(served.stub.Categorize(request_of(pngs[1]), timeout=0.25))
        patient = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[2]), timeout=20))
        await until(lambda: served.running.batcher.depth == 1)
        served.engine.free.set()
        await asyncio.gather(held, patient)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert served.scraped["deepmcat_refused_total reason=deadline"] == 1
    assert served.scraped["deepmcat_forecast_error_seconds_count"] == 2
    assert served.engine.batches == [1, 1, 1]


async def test_failed_batch_answers_everyone(serving, pngs, request_of, until):
    """Where the encoder fails, every caller of the batch gets INFERENCE_FAILED, and the next batch is unharmed."""
    async with serving() as served:
        served.engine.free.clear()
        first = asyncio.ensure_future(served.stub.Categorize(request_of(pngs[0])))
        await until(served.engine.entered.is_set)
        together = [asyncio.ensure_future(served.stub.Categorize(request_of(png))) for png in pngs[1:]]
        await until(lambda: served.running.batcher.depth == 3)
        served.engine.failure = RuntimeError("CUDA error: SECRET^PATIENT")
        served.engine.free.set()
        for call in (first, *together):
            error, details = await refused(call)
            assert error.code() is grpc.StatusCode.INTERNAL
            assert details["ErrorInfo"].reason == "INFERENCE_FAILED"
            assert "SECRET" not in error.details()
        served.engine.failure = None
        response = await served.stub.Categorize(request_of(pngs[1]))

    assert served.engine.batches == [1, 3, 1, 2, 1]  # three again in halves, which both fail
    assert response.categorization.assignment.cluster_id == 1


async def test_a_bug_tells_the_caller_nothing(serving, pngs, request_of):
    """An exception that is not ours is "internal error" for the caller, whatever its text."""

    class Broken:
        def __init__(self, workers: int) -> None:
            self.warm = workers

        def submit(self, source, options):
            if self.warm:
                self.warm -= 1
                future: Any = __import__("concurrent.futures").futures.Future()
                future.set_result(read_planes(source, options))
                return future
            raise KeyError("SECRET^PATIENT")

        def close(self) -> None:
            """Nothing to close."""

    async with serving(pool=Broken) as served:
        error, details = await refused(served.stub.Categorize(request_of(pngs[0])))

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert details["ErrorInfo"].reason == "INTERNAL"
    assert served.scraped["deepmcat_images_total result=internal"] == 1
