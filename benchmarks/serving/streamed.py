"""Planes through our stream: the processor time of all server processes for an image, beside the bare engine's."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

from benchmarks.serving import artifacts, contenders
from benchmarks.serving.artifacts import LITE0, VGG
from benchmarks.serving.contenders import MAX_BATCH, Running
from benchmarks.serving.measuring import Bench, Found, RowFailed, scrape, started
from benchmarks.serving.observations import spread, total
from benchmarks.serving.processes import Process

IMAGES = {LITE0: 3000, VGG: 200}
IN_FLIGHT, STREAMS = 256, 4
LONGEST_S = 600.0  # of a run without a server


def measure(bench: Bench) -> Found:
    return {encoder: _one(bench, encoder, bench.count(images)) for encoder, images in IMAGES.items()}


def _one(bench: Bench, encoder: str, images: int) -> Found:
    task, found = bench.encoding(encoder), Found()
    served, bare = [], []
    with ExitStack() as stack:
        (server,) = started(stack, [contenders.ours()], task, found)
        for _ in range(bench.rounds):
            bare.append(alone(bench, "engine", task.artifact, images, MAX_BATCH))
            served.append(streamed(bench, server, images, {"planes": 64}))
    ratios = [s["cpu_ms"] / b["cpu_ms"] for s, b in zip(served, bare, strict=True)]
    return {
        "weights": artifacts.weights(encoder),
        "ratio": spread(ratios)._asdict(),
        "server_cpu_ms": spread([each["cpu_ms"] for each in served])._asdict(),
        "bare_cpu_ms": spread([each["cpu_ms"] for each in bare])._asdict(),
        "server_per_s": spread([each["per_s"] for each in served])._asdict(),
        "bare_per_s": spread([each["per_s"] for each in bare])._asdict(),
        "client_cpu_ms": spread([each["client_cpu_ms"] for each in served])._asdict(),
        "mean_batch": spread([each["mean_batch"] for each in served])._asdict(),
        "stages_ms": served[-1]["stages_ms"],
    }


def streamed(bench: Bench, server: Running, images: int, spec: Found) -> Found:
    """So many images by our client; what the server took, its stages among it."""
    asked, result = bench.folder / "streaming.json", bench.folder / "streamed.json"
    asked.write_text(
        json.dumps(spec | {"address": server.address, "images": images, "in_flight": IN_FLIGHT, "streams": STREAMS})
    )
    server.process.settle()
    scraped, cpu_s = scrape(server), server.process.cpu_s()
    command = [sys.executable, "-m", "benchmarks.serving.streaming", asked, result]
    with Process(command, log=bench.folder / "streaming.log", on=bench.cores.load) as client:
        client.wait_until(result.exists)
    cpu_s = server.process.cpu_s() - cpu_s
    found = json.loads(result.read_text())
    result.unlink()
    if found["failed"]:
        raise RowFailed(f"{len(found['failed'])} of {images} images were not answered: {found['failed'][0]}")
    change = {key: value - scraped.get(key, 0.0) for key, value in scrape(server).items()}
    ran = total(change, "deepmcat_batch_size_sum")  # those before the time began too
    return {
        "per_s": images / found["seconds"],
        "cpu_ms": 1e3 * cpu_s / ran,
        "client_cpu_ms": 1e3 * found["cpu_s"] / images,
        "mean_batch": ran / max(1.0, total(change, "deepmcat_batch_size_count")),
        "stages_ms": stages_ms(change, ran),
    }


def stages_ms(change: dict[str, float], images: float) -> dict[str, float]:
    """Milliseconds of an image by stage, waiting included; of a batch's encoding its share."""
    name = "deepmcat_stage_duration_seconds_sum"
    stages = [key.partition('stage="')[2].partition('"')[0] for key in change if key.startswith(name)]
    return {stage: round(1e3 * total(change, name, f'stage="{stage}"') / images, 3) for stage in stages}


def alone(bench: Bench, *arguments: Any) -> Found:
    """What bare.py says, on the servers' cores: milliseconds of the processor for an image, and images a second."""
    log = bench.folder / "bare.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.serving.bare", *arguments]
    with Process(command, log=log, on=bench.cores.servers) as process:
        process.wait(LONGEST_S)
    lines = log.read_text().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise RowFailed(f"bare.py ended with {lines[-1] if lines else 'nothing'}")
    found = json.loads(lines[-1])
    return {"per_s": found["images"] / found["seconds"], "cpu_ms": 1e3 * found["cpu_s"] / found["images"]}
