"""What a server takes of a processor for an image, apart from the encoder: in its place each batch only waits.

Of the differences between the lines one can read what gRPC, a queue with batches, and all the rest of ours cost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.serving import contenders, dicom
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.beside import CALLERS, saturated
from benchmarks.serving.contenders import MAX_BATCH, Running
from benchmarks.serving.measuring import Bench, Found, started
from benchmarks.serving.observations import spread
from benchmarks.serving.streamed import alone, streamed

from deepmcat_core.artifact import Artifact

BATCH_S = 0.030
PLANES, FILES = 3000, 1000
STORED = "uncompressed"


def measure(bench: Bench) -> Found:
    """Rounds of calls to each server, and of streams to ours."""
    path = bench.artifact(LITE0)
    dim, found = Artifact.load(path).manifest.dim, Found()
    task = contenders.fixed(bench.folder, path, dim, bench.cores, seconds=BATCH_S, batch=MAX_BATCH)
    files = dicom.files(bench, STORED)
    many = [files[i % len(files)] for i in range(bench.count(FILES))]
    nothing = contenders.plain("gRPC alone", "--nothing")
    with ExitStack() as stack:
        running = started(stack, [nothing, contenders.plain("plain asyncio servicer"), contenders.ours()], task, found)
        echo, plain, ours = running
        ways: dict[str, Callable[[], float]] = {
            "a call to a servicer that does nothing": lambda: _called(bench, echo),
            "a call to a plain asyncio servicer": lambda: _called(bench, plain),
            "a call to ours, ModelInfer": lambda: _called(bench, ours),
            "a call to ours, Categorize": lambda: _called(bench, ours, "categorize"),
            "a plane of a stream": lambda: _streamed(bench, ours, PLANES, {"planes": 64}),
            "a DICOM file of 512² of a stream, decoding included": lambda: _streamed(
                bench, ours, FILES, {"files": files}
            ),
            "decoding it by itself": lambda: alone(bench, "decode", path, *many)["cpu_ms"],
        }
        rounds = [{way: measured() for way, measured in ways.items()} for _ in range(bench.rounds)]
    found["cpu_ms"] = {way: spread([each[way] for each in rounds])._asdict() for way in ways}
    return found


def _called(bench: Bench, server: Running, way: str = "") -> float:
    milliseconds: float = saturated(bench, server, 1, CALLERS, way)["cpu_ms"]
    return milliseconds


def _streamed(bench: Bench, server: Running, images: int, spec: Found) -> float:
    milliseconds: float = streamed(bench, server, bench.count(images), spec)["cpu_ms"]
    return milliseconds
