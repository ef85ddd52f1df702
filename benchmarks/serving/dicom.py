"""DICOM files of 512² from our client to the answer, beside a person's own loop, and the bound that the cores set."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from benchmarks.decode_objects import dicom, encode_openjpeg, picture
from benchmarks.serving import contenders
from benchmarks.serving.artifacts import LITE0
from benchmarks.serving.contenders import MAX_BATCH
from benchmarks.serving.measuring import Bench, Found, started
from benchmarks.serving.observations import spread
from benchmarks.serving.streamed import alone, streamed
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

SIDE = 512
FILES = 16  # different ones
IMAGES = {"uncompressed": 1000, "JPEG 2000 lossless": 400}


def measure(bench: Bench) -> Found:
    """For each way to store pixels."""
    task, found = bench.encoding(LITE0), Found()
    cores = len(bench.cores.servers)
    with ExitStack() as stack:
        (server,) = started(stack, [contenders.ours()], task, found)
        for name, usual in IMAGES.items():
            images = bench.count(usual)
            paths = files(bench, name)
            many = [paths[i % FILES] for i in range(images)]
            rounds = [_round(bench, server, task.artifact, paths, many) for _ in range(bench.rounds)]
            bounds = [1e3 * cores / (each["decode_ms"] + each["encode_ms"]) for each in rounds]
            found[name] = {
                "server_per_s": spread([each["server"]["per_s"] for each in rounds])._asdict(),
                "loop_per_s": spread([each["loop_per_s"] for each in rounds])._asdict(),
                "decode_ms": spread([each["decode_ms"] for each in rounds])._asdict(),
                "encode_ms": spread([each["encode_ms"] for each in rounds])._asdict(),
                "bound_per_s": spread(bounds)._asdict(),
                "of_bound": spread([r["server"]["per_s"] / b for r, b in zip(rounds, bounds, strict=True)])._asdict(),
                "of_bound_cpu": spread(
                    [(each["decode_ms"] + each["encode_ms"]) / each["server"]["cpu_ms"] for each in rounds]
                )._asdict(),
                "beside_loop": spread([each["server"]["per_s"] / each["loop_per_s"] for each in rounds])._asdict(),
                "server_cpu_ms": spread([each["server"]["cpu_ms"] for each in rounds])._asdict(),
                "stages_ms": rounds[-1]["server"]["stages_ms"],
            }
    return found


def _round(bench: Bench, server: contenders.Running, artifact: object, paths: list[str], many: list[str]) -> Found:
    return {
        "decode_ms": alone(bench, "decode", artifact, *many[: bench.count(200)])["cpu_ms"],
        "encode_ms": alone(bench, "engine", artifact, len(many), MAX_BATCH)["cpu_ms"],
        "server": streamed(bench, server, len(many), {"files": paths}),
        "loop_per_s": alone(bench, "loop", artifact, MAX_BATCH, *many[: bench.count(200)])["per_s"],
    }


def files(bench: Bench, name: str) -> list[str]:
    """Their paths: so many different pictures, stored in one of the ways."""
    folder = bench.folder / f"dicom-{name.replace(' ', '-')}"
    folder.mkdir(exist_ok=True)
    for i in range(FILES):
        (folder / f"{i}.dcm").write_bytes(_file(name, picture(SIDE, i)))
    return [str(folder / f"{i}.dcm") for i in range(FILES)]


def _file(name: str, pixels: np.ndarray) -> bytes:
    if name == "uncompressed":
        return dicom(pixels, ExplicitVRLittleEndian)
    return dicom(pixels, JPEG2000Lossless, [encode_openjpeg(pixels, 12)])
