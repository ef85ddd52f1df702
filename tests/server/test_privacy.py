"""Nothing that a caller or an image says gets into logs, metrics or errors; labels come from closed sets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import urllib.request
import warnings

import grpc
import imagecodecs
import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array as encode_openjpeg
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core.logs import FIELDS
from deepmcat_server.tracing import Tracing

CANARY = "CANARY-7F3A"


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


def canary_dicom(canaries) -> bytes:
    """A DICOM file that has a canary wherever there is room for one."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # pydicom puts in what it is
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = canaries.uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationVersionName, meta.SourceApplicationEntityTitle = canaries.text(), canaries.text()
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = canaries.uid(), canaries.text().encode() + b" "
    ds = FileDataset("unnamed", {}, file_meta=meta, preamble=canaries.text().encode().ljust(128, b"\0"))
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 32, 32, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = np.arange(32 * 32, dtype=np.uint16).astype(np.uint8).tobytes()
    canaries.fill(ds)
    return written(ds)


def written(dataset: FileDataset) -> bytes:
    """The file; values that are wrong on purpose are written as they are."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, dataset)
    return file.getvalue()


def canary_files(canaries) -> dict[str, bytes]:
    """Good and malformed files full of canaries, each going wrong in another place."""
    good = canary_dicom(canaries)
    middle, pixels = good.index(b"\x10\x00\x10\x00PN"), good.index(b"\xe0\x7f\x10\x00")
    syntax = good.index(b"\x02\x00\x10\x00UI")
    start = 132 + 12 + int.from_bytes(good[140:144], "little")  # of the data set: (0002,0000) says where

    def saying(uid: str) -> bytes:
        """The same in the name of another transfer syntax."""
        value = uid.encode() + b"\0" * (len(uid) % 2)
        rest = syntax + 8 + int.from_bytes(good[syntax + 6 : syntax + 8], "little")
        return good[: syntax + 6] + len(value).to_bytes(2, "little") + value + good[rest:]

    def with_(**attributes: object) -> bytes:
        """The same with other attributes."""
        dataset = pydicom.dcmread(io.BytesIO(good))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for keyword, value in attributes.items():
                setattr(dataset, keyword, value)
        return written(dataset)

    def compressed(uid: str, codestream: bytes) -> bytes:
        """The same with its pixels in a codestream."""
        dataset = pydicom.dcmread(io.BytesIO(good))
        dataset.file_meta.TransferSyntaxUID = UID(uid)
        dataset.PixelData = encapsulate([codestream])
        dataset["PixelData"].VR = "OB"
        return written(dataset)

    jpeg, jpeg_2000 = commented_jpeg(canaries), commented_jpeg_2000(canaries)
    return {
        "good": good,
        "JPEG": compressed(JPEGBaseline8Bit, jpeg),
        "JPEG, cut": compressed(JPEGBaseline8Bit, jpeg[: len(jpeg) * 2 // 3]),
        "JPEG 2000": compressed(JPEG2000Lossless, jpeg_2000),
        "JPEG 2000, cut": compressed(JPEG2000Lossless, jpeg_2000[: len(jpeg_2000) // 3]),
        "JPEG 2000, damaged": compressed(JPEG2000Lossless, jpeg_2000.replace(b"\xff\x52\x00\x0c", b"\xff\x52\xff\xff")),
        "JPEG without DICOM": jpeg,
        "program in the preamble": b"MZ" + good[2:],
        "bare": good[start:],
        "cut in the header": good[: middle + 12],
        "cut in the pixels": good[: pixels + 100],
        "cut in the file meta group": good[:180],
        "wrong length": good[: middle + 6] + b"\xff\xff" + good[middle + 8 :],
        "wrong VR": good[: middle + 4] + b"SQ" + good[middle + 6 :],
        "unknown syntax": saying(canaries.uid()),
        "deflated, but not": saying(DeflatedExplicitVRLittleEndian),
        "compressed, but not": saying(JPEG2000Lossless),
        "lossless JPEG, but not": saying(JPEGLosslessSV1),
        "RLE, but not": saying(RLELossless),
        "big endian, but not": saying(ExplicitVRBigEndian),
        "report": with_(SOPClassUID=BasicTextSRStorage),
        "of no known class": with_(SOPClassUID=canaries.uid()),
        "photometric interpretation": with_(PhotometricInterpretation=canaries.text()),
        "character set": good[:start] + b"\x08\x00\x05\x00CS\x0a\x00" + canaries.text().encode() + b" " + good[start:],
        "bits": with_(BitsAllocated=7),
        "rows": with_(Rows=60000),
        "palette": with_(PhotometricInterpretation="PALETTE COLOR"),
        "text": canaries.text().encode() * 30,
        "png": b"\x89PNG\r\n\x1a\n" + canaries.text().encode() * 30,
        "tiff": b"II*\0" + canaries.text().encode() * 30,
    }


def commented_jpeg(canaries) -> bytes:
    """A JPEG with canaries in a comment and in an application segment (ISO/IEC 10918-1 B.2.4.5, B.2.4.6)."""
    codestream = imagecodecs.jpeg8_encode(np.arange(32 * 32, dtype=np.uint16).astype(np.uint8).reshape(32, 32))
    texts = [(marker, canaries.text().encode()) for marker in (b"\xff\xfe", b"\xff\xe1")]
    return codestream[:2] + b"".join(m + (2 + len(t)).to_bytes(2, "big") + t for m, t in texts) + codestream[2:]


def commented_jpeg_2000(canaries) -> bytes:
    """A JPEG 2000 codestream with a canary in a comment of its main header (ISO/IEC 15444-1 A.9.2)."""
    codestream = bytes(encode_openjpeg(np.arange(32 * 32, dtype=np.uint16).astype(np.uint8).reshape(32, 32)))
    text = canaries.text().encode()
    at = codestream.index(b"\xff\x52")  # COD, anywhere after SIZ
    return codestream[:at] + b"\xff\x64" + (4 + len(text)).to_bytes(2, "big") + b"\0\1" + text + codestream[at:]


def test_every_text_of_a_file_stays_in_it(canaries, start, onnx_artifact, capfd):
    """A server of processes, at its most talkative: no text, date or UID of any file is in what it says or writes."""
    server = start(onnx_artifact, "--set", "log_level=debug", "--set", "drain_s=0")
    files = canary_files(canaries)
    said: dict[str, str] = {}
    with grpc.insecure_channel(server.listen) as channel:
        stub = pb_grpc.CategorizationServiceStub(channel)
        messages = [
            pb.CategorizeStreamRequest(item=pb.CategorizeRequest(item_id=canaries.text(), image=pb.Image(encoded=file)))
            for file in files.values()
        ]
        answers = list(stub.CategorizeStream(iter(messages), timeout=120))
        for name, message, answer in zip(files, messages, answers, strict=True):
            try:
                said[f"call: {name}"] = str(stub.Categorize(message.item, timeout=60).categorization)
            except grpc.RpcError as error:
                said[f"call: {name}"] = f"{error.details()} {error.trailing_metadata()}"
            said[f"stream: {name}"] = str(answer.categorization) + str(answer.error)
    said["metrics"] = urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=5).read().decode()
    server.stop()
    said["log"] = server.log.read_text()
    said["standard output"] = "".join(capfd.readouterr())

    outcomes = {name: answer.WhichOneof("result") for name, answer in zip(files, answers, strict=True)}
    read = ("good", "program in the preamble", "bare", "JPEG", "JPEG 2000", "JPEG without DICOM")
    assert [outcomes[name] for name in read] == ["categorization"] * len(read)
    assert sum(outcome == "error" for outcome in outcomes.values()) >= 15, outcomes
    assert {name: canaries.found_in(text) for name, text in said.items() if canaries.found_in(text)} == {}
    program = answers[list(files).index("program in the preamble")]
    assert pb.IMAGE_FLAG_PREAMBLE_EXECUTABLE in program.categorization.flags
    assert "deepmcat_preamble_executables_total 2.0" in said["metrics"]


async def test_nothing_of_an_image_is_in_a_trace(canaries, serving):
    """No text, UID or item id of any file, good or malformed, and no metadata or message is in what is exported."""
    spans = InMemorySpanExporter()
    files = canary_files(canaries)
    items = [pb.CategorizeRequest(item_id=canaries.text(), image=pb.Image(encoded=file)) for file in files.values()]
    metadata = (("x-note", canaries.text()), ("user-agent", canaries.text()))
    async with serving(tracing=Tracing(spans, sample=1.0, images=100)) as served:
        messages = [pb.CategorizeStreamRequest(item=item) for item in items]
        answers = [answer async for answer in served.stub.CategorizeStream(iter(messages), metadata=metadata)]
        for item in items:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await served.stub.Categorize(item, metadata=metadata)

    assert len(answers) == len(files)
    exported = spans.get_finished_spans()
    assert sum(span.name == "image" for span in exported) == 2 * len(files)
    assert {
        span.name: canaries.found_in(span.to_json()) for span in exported if canaries.found_in(span.to_json())
    } == {}


def test_canaries_are_where_a_leak_would_find_them(canaries):
    """The test above can fail: thousands of canaries are in a file, one by one, and one is enough."""
    file = canary_dicom(canaries)
    dataset = pydicom.dcmread(io.BytesIO(file))

    assert len(canaries.found_in(file)) > 2000
    for element in (dataset.PatientName, dataset.StudyInstanceUID, dataset.StudyDate, dataset.PatientWeight):
        assert canaries.found_in(f"cannot read {element!s}")
    assert canaries.found_in(str(dataset[0x0011, 0x0010].value).encode("utf-16"))
    assert not canaries.found_in("1.2.840.10008.1.2.1 Q12ZX 20261231")
    for codestream in (commented_jpeg(canaries), commented_jpeg_2000(canaries)):
        assert canaries.found_in(codestream)


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
        "grpc_service", "grpc_method", "grpc_code", "result", "reason", "stage", "category_id", "artifact_id",
        "artifact_name", "cause", "le",
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
