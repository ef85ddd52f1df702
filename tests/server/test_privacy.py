"""Nothing that a caller or an image says gets into logs, metrics or errors; labels come from closed sets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import urllib.request

import grpc
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.logs import FIELDS, JsonFormatter

CANARY = "CANARY-7F3A"


@pytest.fixture(name="log")
def log_fixture():
    """Everything that is logged, as the server's own formatter writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, ours = logging.getLogger(), logging.getLogger("deepmcat")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield stream
    ours.setLevel(level)
    root.removeHandler(handler)


def dicom(*, damaged: bool = False) -> bytes:
    """A small DICOM file whose every text and UID is a canary."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.999.7.3.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("unnamed", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName = f"{CANARY}^NAME"
    ds.PatientID = f"{CANARY}-ID"
    ds.AccessionNumber = f"{CANARY}-AC"
    ds.StudyDescription = f"{CANARY} study"
    ds.SeriesInstanceUID = "1.2.3.999.7.3.2"
    ds.Rows, ds.Columns = 32, 32
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = np.arange(32 * 32 if not damaged else 200, dtype=np.uint8).tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds)
    return file.getvalue()


async def test_canaries_stay_out(serving, request_of, log):
    """Item ids, patient text and UIDs are in no log line, metric or error, for good, bad and failed images alike."""
    seen: list[str] = []
    async with serving() as served:
        good = await served.stub.Categorize(request_of(dicom(), CANARY))
        served.engine.failure = RuntimeError(f"{CANARY} in the engine")
        calls = [
            served.stub.Categorize(request_of(dicom(), CANARY)),
            served.stub.Categorize(request_of(dicom(damaged=True), CANARY)),
            served.stub.Categorize(request_of(CANARY.encode() * 50, CANARY)),
            served.stub.Categorize(request_of(dicom(), CANARY * 9)),
            served.stub.Categorize(request_of(dicom(), CANARY, artifact_id=CANARY)),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            seen += [str(caught.value.details()), str(caught.value.trailing_metadata())]
        stream = served.stub.CategorizeStream(
            iter([pb.CategorizeStreamRequest(item=request_of(dicom(damaged=True), f"item-{i}")) for i in range(3)])
        )
        seen += [str(response.error) async for response in stream]
        url = f"http://{served.running.admin}/metrics"
        seen.append(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode()))

    assert good.item_id == CANARY
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert sum(line["event"] == "call" for line in lines) >= 7
    seen.append(log.getvalue())
    for text in seen:
        assert CANARY not in text
        assert "1.2.3.999" not in text
        assert "item-" not in text


async def test_one_access_line_a_call(serving, pngs, request_of, log):
    """A call of ours is one line: method, code, duration and the number of images, and fields of the closed set."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]))
        messages = [pb.CategorizeStreamRequest(item=request_of(png)) for png in pngs]
        assert [r async for r in served.stub.CategorizeStream(iter(messages))]
        with pytest.raises(grpc.aio.AioRpcError):
            await served.stub.Categorize(request_of(b""))

    lines = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "call"]
    assert [(line["method"], line["code"], line["images"]) for line in lines] == [
        ("Categorize", "OK", 1),
        ("CategorizeStream", "OK", 4),
        ("Categorize", "INVALID_ARGUMENT", 1),
    ]
    assert all(line.keys() <= FIELDS | {"time", "level", "event"} for line in lines)


async def test_metrics_are_as_documented(serving, pngs, request_of):
    """A scrape of the admin port has the names of the architecture, counts by outcome and stage, and no other label."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]))
        with pytest.raises(grpc.aio.AioRpcError):
            await served.stub.Categorize(request_of(b""))
        url = f"http://{served.running.admin}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        scraped = served.scraped
        artifact_id = served.categorizer.artifact.artifact_id
        labels = {label for family in served.running.registry.collect() for s in family.samples for label in s.labels}

    assert labels == {
        "grpc_service", "grpc_method", "grpc_code", "result", "stage", "category_id", "artifact_id", "cause", "le",
    }  # fmt: skip
    call = "grpc_method=Categorize grpc_service=deepmcat.v1.CategorizationService"
    assert scraped[f"grpc_server_started_total {call}"] == 2
    assert scraped[f"grpc_server_handled_total grpc_code=OK {call}"] == 1
    assert scraped[f"grpc_server_handled_total grpc_code=INVALID_ARGUMENT {call}"] == 1
    assert scraped[f"grpc_server_handling_seconds_count {call}"] == 2
    assert scraped["deepmcat_images_total result=ok"] == 1
    assert scraped["deepmcat_images_total result=invalid_request"] == 1
    for stage in ("receive", "decode", "queue", "encode", "assign"):
        assert scraped[f"deepmcat_stage_duration_seconds_count stage={stage}"] >= 1, stage
    assert scraped[f"deepmcat_artifact_info artifact_id={artifact_id}"] == 1
    for name in (
        "deepmcat_batch_size", "deepmcat_queue_depth", "deepmcat_queue_wait_seconds", "deepmcat_outliers_total",
        "deepmcat_assignments_total", "deepmcat_centroid_distance", "deepmcat_decode_worker_restarts_total",
        "deepmcat_preamble_executables_total",
    ):  # fmt: skip
        assert name in text
    assert "CT chest" not in text
