"""A server under attack: hostile images among good ones over many streams, and decoding workers that are killed.

Every image is sent alone first, to a server that has nothing else to do; what it is answered then is what it has to be
answered in the attack. So a good image is right, and a hostile one gets its own typed answer, not a neighbour's.
"""

from __future__ import annotations

import io
import os
import random
import re
import signal
import struct
import threading
import time
import urllib.request
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pydicom
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image as PillowImage

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc

STREAMS = 8
IMAGES = 1000  # of each kind
WORKERS = 2
ANSWERS_A_KILL = 60
GROWTH_MIB = 12  # from the first quarter of the attack to the last: 8 KiB of each image that comes meanwhile
KEPT_MIB = 128  # by a worker for its next image (decode_worker), and no leak
IDLE_S = 0.5
LONG = pb.CategorizeOptions(timeout_ms=200_000)  # nothing may be refused for want of time
# What the server frees is given back. By itself glibc keeps much of it now and then, which would hide a leak.
GIVING_BACK = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
CORPUS = Path(pydicom.__file__).parent / "data" / "test_files"

# What is said of an image, as opposed to the server's own state or a bug.
VERDICTS = {"NOT_AN_IMAGE", "UNSUPPORTED_IMAGE", "CORRUPT_IMAGE", "IMAGE_TOO_LARGE", "INVALID_REQUEST"}

Answer = tuple[str, ...]
"""("ok", cluster, category, distance) or ("error", reason)."""


def good_images(pngs: list[bytes]) -> list[bytes]:
    """Small images in many syntaxes, and the artifact's prototypes."""
    names = (
        "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm",
        "image_dfl.dcm", "JPEG-LL.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", "HTJ2K_08_RGB.dcm",
        "JPEG2000.dcm", "color-pl.dcm", "examples_palette.dcm", "liver_1frame.dcm", "rtdose.dcm", "emri_small.dcm",
        "693_J2KI.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm", "OBXXXX1A.dcm",
    )  # fmt: skip
    return [*pngs, *(path.read_bytes() for name in names if (path := CORPUS / name).exists())]


def hostile_images() -> dict[str, bytes]:
    """Bombs, lies, damage and rubbish, made on the spot."""
    rng = random.Random(7)
    ct, rle, jpeg = ((CORPUS / name).read_bytes() for name in ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm"))
    pixels, meta_end = ct.index(b"\xe0\x7f\x10\x00"), ct.index(b"\x08\x00\x05\x00")
    deflated = ct[:meta_end].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99").replace(
        b"\x02\x00\x10\x00UI\x14\x00", b"\x02\x00\x10\x00UI\x16\x00"
    )  # fmt: skip
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    nested = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    images = {
        "deflate bomb": deflated + packer.compress(bytes(2**27)) + packer.flush(),
        "20,000 deep": ct[:pixels] + nested * 20_000 + ct[pixels:],
        "elements": ct[:pixels] + b"\x40\x00\x00\x10SH\0\0" * 300_000 + ct[pixels:],
        "rows": ct.replace(b"\x28\x00\x10\x00US\x02\x00\x80\x00", b"\x28\x00\x10\x00US\x02\x00\xff\xff"),
        "4 GiB": ct[:pixels] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<L", 0xFFFFFFF0) + bytes(8),
        "50,000 frames": jpeg.replace(b"\x28\x00\x10\x00", b"\x28\x00\x08\x00IS\x06\x0050000 \x28\x00\x10\x00", 1),
        "program": b"MZ".ljust(128, b"\0") + ct[128 : len(ct) // 2],
        "memory": _png(np.zeros((9000, 9000), np.uint8)),
        "random": rng.randbytes(65536),
        "text": b"no image at all " * 100,
        "empty": b"",
        "png, cut": _png(np.eye(64, dtype=np.uint8))[:90],
    }
    for name, whole in (("ct", ct), ("rle", rle), ("j2k", jpeg)):
        for n in range(12):
            damaged = bytearray(whole)
            for _ in range(1 + n):
                damaged[rng.randrange(132, len(damaged))] = rng.randrange(256)
            images[f"{name}, damaged {n}"] = bytes(damaged)
            images[f"{name}, cut {n}"] = whole[: rng.randrange(200, len(whole))]
    return images


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(
    name="hostile", params=["generated", pytest.param("hostile set", marks=pytest.mark.data)], scope="module"
)
def hostile_fixture(request: pytest.FixtureRequest) -> list[bytes]:
    if request.param == "generated":
        return list(hostile_images().values())
    root = Path(os.environ.get("DEEPMCAT_DATA", "")) / "hostile"
    if "DEEPMCAT_DATA" not in os.environ or not root.is_dir():
        pytest.skip("DEEPMCAT_DATA names no folder with hostile/ (docs/data.md)")
    return [path.read_bytes() for path in sorted(root.glob("*/*")) if path.is_file()]


def answer_of(response: pb.CategorizeStreamResponse) -> Answer:
    """What has to be the same however often and among whatever an image is sent."""
    if response.WhichOneof("result") == "error":
        info = ErrorInfo()
        assert response.error.details[0].Unpack(info)
        return "error", info.reason
    assignment = response.categorization.assignment
    return "ok", str(assignment.cluster_id), assignment.category_id, f"{assignment.distance:.4f}"


def stream(address: str, images: list[bytes], on_answer: Callable[[], None] = lambda: None) -> list[Answer]:
    """The answers to images sent on one stream of one connection, each in its place. on_answer: called for each."""
    answers = []
    with grpc.insecure_channel(address) as channel:
        messages = (
            pb.CategorizeStreamRequest(
                item=pb.CategorizeRequest(item_id=str(n), image=pb.Image(encoded=image), options=LONG)
            )
            for n, image in enumerate(images)
        )
        stub = pb_grpc.CategorizationServiceStub(channel)
        for answer in stub.CategorizeStream(messages, timeout=600):
            answers.append(answer)
            on_answer()
    assert [answer.item_id for answer in answers] == [str(n) for n in range(len(images))]
    return [answer_of(answer) for answer in answers]


def attack(address: str, images: list[bytes], on_answer: Callable[[], None]) -> list[Answer]:
    """The answers to images spread over the streams, all at once."""
    with ThreadPoolExecutor(STREAMS) as threads:
        parts = list(threads.map(lambda n: stream(address, images[n::STREAMS], on_answer), range(STREAMS)))
    answers: list[Answer] = [("error", "MISSING")] * len(images)
    for n, part in enumerate(parts):
        answers[n::STREAMS] = part
    return answers


def workers_of(server: int) -> list[int]:
    """The processes that a server has spawned to decode."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class Memory:
    """The least that each process of a server had resident while a phase lasted.

    What an image takes comes and goes, and an allocator gives back what it likes; what leaks stays, and the least has
    it. A worker that an image has ended, or its successor, was not there for long enough to have been seen idle.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._seen: defaultdict[int, list[int]] = defaultdict(list)

    @property
    def of_server(self) -> float:
        """Of the server itself, in MiB."""
        return min(self._seen[self._server]) / 2**10

    @property
    def of_workers(self) -> float:
        """Of the worker that had most, of those that were there for most of the time, in MiB."""
        often = len(self._seen[self._server]) / 2
        least = [min(seen) for pid, seen in self._seen.items() if pid != self._server and len(seen) > often]
        return max(least, default=0) / 2**10

    def look(self) -> None:
        """Note what there is now, but for workers on their way up: they have less than they will have with no image."""
        for pid in (self._server, *filter(self._is_up, workers_of(self._server))):
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):  # it is gone, or going
                status = Path(f"/proc/{pid}/status").read_text()
                self._seen[pid].append(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]))

    def _is_up(self, worker: int) -> bool:
        """Whether a worker has imported what it needs: what it prints no longer goes where the server's does."""
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{worker}/fd/1").readlink() != Path(f"/proc/{self._server}/fd/1").readlink()
        return False


@contextmanager
def memory_watched(server: int) -> Iterator[Memory]:
    """The memory of a server and its workers meanwhile; all of the workers are there before and after."""
    memory, stop = Memory(server), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            memory.look()

    assert soon(lambda: len(workers_of(server)) == WORKERS), workers_of(server)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
        assert soon(lambda: len(workers_of(server)) == WORKERS), workers_of(server)
        time.sleep(IDLE_S)  # an image's memory is given back after its answer
        memory.look()
    finally:
        stop.set()
        thread.join()


def soon(condition: Callable[[], bool]) -> bool:
    """Whether something becomes so."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def metric(admin: str, name: str) -> float:
    """A sample of the metrics page, by its name and labels."""
    page = urllib.request.urlopen(f"http://{admin}/metrics", timeout=10).read().decode()
    return float(re.findall(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)[0])


@contextmanager
def health_watched(server: Any) -> Iterator[Counter[str]]:
    """What the health service and the probes say meanwhile, and which errors they end with."""
    said: Counter[str] = Counter()
    stop = threading.Event()

    def look() -> None:
        with grpc.insecure_channel(server.listen) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        said[health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)] += 1
        for probe in ("livez", "readyz"):
            said[urllib.request.urlopen(f"http://{server.admin}/{probe}", timeout=10).read().decode().strip()] += 1

    def watch() -> None:
        while not stop.wait(0.1):
            try:
                look()
            except (grpc.RpcError, OSError) as error:
                said[repr(error)] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)  # a machine that is busy with something else takes its time
@pytest.mark.parametrize("killing", [False, True], ids=["left alone", "workers killed"])
def test_a_server_under_attack(killing, hostile, pngs, start, onnx_artifact, monkeypatch):
    """Each image is answered as if it had been alone; memory stays flat, no worker is lost, health is never red."""
    for name, value in GIVING_BACK.items():
        monkeypatch.setenv(name, value)
    settings = {"decode_workers": WORKERS, "decode_memory_bytes": 512 * 2**20, "max_timeout_s": 300, "drain_s": 0}
    server = start(onnx_artifact, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")))
    pid, good, rng = server.process.pid, good_images(pngs), random.Random(1)
    alone = dict(zip([*good, *hostile], stream(server.listen, [*good, *hostile]), strict=True))
    images = [rng.choice(kind) for kind in (good, hostile) for _ in range(IMAGES)]
    rng.shuffle(images)
    killed, count, lock = 0, 0, threading.Lock()

    def kill_some() -> None:
        """Kill any worker, be it busy, idle or on its way up, so often that the next answers still come."""
        nonlocal killed, count
        with lock:
            count += 1
            if count % ANSWERS_A_KILL == 0 and (workers := workers_of(pid)):
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1

    answers: list[Answer] = []
    memory: list[Memory] = []
    with health_watched(server) as said:
        for quarter in range(4):
            part = images[quarter * IMAGES // 2 : (quarter + 1) * IMAGES // 2]
            answers += attack(server.listen, part, kill_some if killing else lambda: None)
            # Once more with nobody killing anybody, so that workers that are new have seen what the others have.
            with memory_watched(pid) as watched:
                assert stream(server.listen, list(alone)) == list(alone.values())
            memory.append(watched)
    deaths = metric(server.admin, 'deepmcat_decode_worker_restarts_total{cause="killed"}')
    internal = metric(server.admin, 'deepmcat_images_total{result="internal"}')
    code = server.stop()

    assert {alone[image][0] for image in good} == {"ok"}
    assert {alone[image][1] for image in hostile if alone[image][0] == "error"} <= VERDICTS
    wrong = [(alone[image], found) for image, found in zip(images, answers, strict=True) if alone[image] != found]
    assert wrong == []
    assert said.keys() == {"SERVING", "ok"}
    assert memory[-1].of_server < memory[0].of_server + GROWTH_MIB
    lasting = [watched.of_workers for watched in memory if watched.of_workers]
    assert len(lasting) >= 2
    assert max(lasting) < min(lasting) + KEPT_MIB + GROWTH_MIB  # a worker that retires takes its leak with it
    assert (killed > 20 and 0 < deaths <= killed) if killing else deaths == 0
    assert internal == 0
    assert code == 0, server.log.read_text()


def test_an_answer_to_a_status_is_its_reason():
    """The attack compares reasons, and would not notice if they were all the same."""
    status = Status()
    status.details.add().Pack(ErrorInfo(reason="CORRUPT_IMAGE"))

    assert answer_of(pb.CategorizeStreamResponse(error=status)) == ("error", "CORRUPT_IMAGE")
