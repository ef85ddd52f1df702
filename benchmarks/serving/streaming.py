"""Our own client, streaming, in a process of its own.

    python -m benchmarks.serving.streaming SPEC RESULT

SPEC: address; planes (so many different ones) or files (paths of DICOM files); images, how many to send, or stop, a
file whose appearance ends it; pause_s between them; and arguments of AsyncClient. The result counts what was taken from
the source, answered and failed, with the seconds from the first to the last answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from benchmarks.serving.load import planes

from deepmcat_client import AsyncClient, Categorization, RawPlane

SIDE = 128
WARM = 32  # images before the time begins


def sources(spec: dict[str, Any]) -> list[Any]:
    if "files" in spec:
        return [Path(name).read_bytes() for name in spec["files"]]
    made = planes(spec["planes"], SIDE, 0)
    return [RawPlane(rows=SIDE, columns=SIDE, sample_type="uint8", data=plane.tobytes()) for plane in made]


async def run(spec: dict[str, Any]) -> dict[str, Any]:
    images = sources(spec)
    arguments = {key: spec[key] for key in ("in_flight", "streams", "channels", "images_per_call") if key in spec}
    taken = 0

    async def items() -> AsyncIterator[tuple[int, Any]]:
        nonlocal taken
        stop = Path(spec["stop"]) if "stop" in spec else None
        for n in itertools.count():
            if n == spec.get("images") or (stop is not None and stop.exists()):
                return
            if pause_s := spec.get("pause_s"):
                await asyncio.sleep(pause_s)
            taken += 1
            yield n, images[n % len(images)]

    failures: list[str] = []
    answered = 0
    async with AsyncClient(spec["address"], timeout_s=120, **arguments) as client:
        if "stop" not in spec:
            async for _ in client.categorize_stream((n, images[n % len(images)]) for n in range(WARM)):
                pass
        begin, before = time.monotonic(), time.process_time()
        async for _, answer in client.categorize_stream(items()):
            answered += isinstance(answer, Categorization)
            if not isinstance(answer, Categorization):
                failures.append(type(answer).__name__)
        seconds = time.monotonic() - begin
    return {
        "taken": taken,
        "answered": answered,
        "failed": failures,
        "seconds": seconds,
        "begin": begin,
        "cpu_s": time.process_time() - before,
    }


def main() -> None:
    spec, result = map(Path, sys.argv[1:])
    found = uvloop.run(run(json.loads(spec.read_text())))
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.rename(result)


if __name__ == "__main__":
    main()
