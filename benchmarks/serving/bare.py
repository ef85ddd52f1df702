"""Without a server: what the encoder alone takes, and what a person's own loop over DICOM files does.

    python -m benchmarks.serving.bare engine ARTIFACT IMAGES BATCH
    python -m benchmarks.serving.bare decode ARTIFACT FILE …
    python -m benchmarks.serving.bare loop ARTIFACT BATCH FILE …

Each prints JSON: images, and seconds of the clock and of the processor.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.serving.load import planes

from deepmcat_core.artifact import Artifact
from deepmcat_core.cpus import available_cpus
from deepmcat_core.engine import Engine, open_engine
from deepmcat_core.frame import Frame
from deepmcat_core.intensity import scale
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing


def engine(artifact: Path, images: int, batch: int) -> None:
    """Full batches, one after the other."""
    opened = _engine(artifact, batch)
    made = planes(batch, 128, 0)[:, None]

    def run() -> int:
        for _ in range(-(-images // batch)):
            opened.embed(made)
        return -(-images // batch) * batch

    _timed(run)


def decode(artifact: Path, files: list[Path]) -> None:
    """Our own decoding, as a worker does it."""
    manifest = Artifact.load(artifact).manifest
    options = ReadOptions(preprocessing=manifest.preprocessing, frames=manifest.frames)
    contents = [path.read_bytes() for path in files]
    read_planes(contents[0], options)

    def run() -> int:
        for content in contents:
            read_planes(content, options)
        return len(contents)

    _timed(run)


def loop(artifact: Path, batch: int, files: list[Path]) -> None:
    """What a person writes: pydicom, percentiles, our resampling step, and the same engine in batches."""
    import pydicom
    from pydicom.pixels import apply_modality_lut

    opened, preprocessing = _engine(artifact, batch), Preprocessing()

    def plane(path: Path) -> np.ndarray:
        dataset = pydicom.dcmread(path)
        values = apply_modality_lut(dataset.pixel_array, dataset)
        grey = scale(values, *(float(v) for v in np.percentile(values, (1, 99))))
        return preprocessing.apply(Frame(pixels=grey))

    def run() -> int:
        for start in range(0, len(files), batch):
            opened.embed(np.stack([plane(path) for path in files[start : start + batch]])[:, None])
        return len(files)

    _timed(run)


def _engine(artifact: Path, batch: int) -> Engine:
    opened = open_engine(Artifact.load(artifact), device="cpu", engine="onnx", threads=available_cpus())
    opened.warm([batch])
    return opened


def _timed(run: Callable[[], int]) -> None:
    begin, before = time.monotonic(), time.process_time()
    images = run()
    print(json.dumps({"images": images, "seconds": time.monotonic() - begin, "cpu_s": time.process_time() - before}))


def main() -> None:
    what, artifact, *rest = sys.argv[1:]
    if what == "engine":
        engine(Path(artifact), int(rest[0]), int(rest[1]))
    elif what == "decode":
        decode(Path(artifact), [Path(name) for name in rest])
    else:
        loop(Path(artifact), int(rest[0]), [Path(name) for name in rest[1:]])


if __name__ == "__main__":
    main()
