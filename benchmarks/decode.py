"""From the bytes of a DICOM file to a plane of 128 pixels: `read_planes` beside pydicom with each of its decoders.

    make bench-decode [ARGS="--quick"]                     measure: an environment of its own has the peers
    python benchmarks/decode.py --page [--out FILE]        write docs/decoding.md from what was measured

One process, one thread, the ways taken in turn, in processor time, so that what disturbs one disturbs all. Peers are
what a person would write: `dcmread`, `pixel_array` with one plugin, rescaling, percentiles, and the same resampling
step as ours. pylibjpeg-libjpeg is GPL-3.0: it is installed by the benchmark alone, for comparison, and by nothing of
ours.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import data_store
import decode_page
import machine
import numpy as np
import pydicom
from decode_objects import Object, objects
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian
from rich.console import Console

from deepmcat_core.frame import Frame, FramePolicy
from deepmcat_core.intensity import luminance
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing

# A way to decode in pydicom → the packages it takes, the plugins in pydicom's own order.
PEERS = {
    "gdcm": ("python-gdcm",),
    "pylibjpeg": ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    "pillow": ("pillow",),
}
ALL_FRAMES = "all frames"  # of a cine, as `pixel_array` decodes them when it is not told which
ROUNDS, QUICK_ROUNDS = 9, 3
LONG_S = 8.0  # after that, a way to decode an object has had its rounds
PREPROCESSING = Preprocessing()
CORPORA = (Path(pydicom.__file__).parent / "data" / "test_files", Path(data_store.__file__).parent / "data")
TOP = 8  # functions of a profile

Way = Callable[[], np.ndarray]


def main() -> int:
    options = _options()
    if options.page:
        decode_page.write(json.loads(options.out.read_text(encoding="utf-8")))
        return 0
    console = Console(width=140)
    versions = {name: {package: _version(package) for package in packages} for name, packages in PEERS.items()}
    missing = [name for name, found in versions.items() if None in found.values()]
    for name in missing:
        console.print(f"missing: {name}, which takes {', '.join(PEERS[name])}", style="yellow")
    report: dict[str, Any] = {
        "benchmark": "decode",
        "machine": machine.describe(),
        "peers": versions,
        "missing": missing,
        "results": [],
        "prepare": [],
    }
    for item in objects():
        report["results"].append(measure(item, missing, QUICK_ROUNDS if options.quick else ROUNDS))
        console.print(decode_page.line(report["results"][-1], plain=True), highlight=False)
    for workers in () if options.quick else (1, 2):
        report["prepare"].append(prepare(workers, options.data))
        console.print(str(report["prepare"][-1]), highlight=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.out}; --page writes docs/decoding.md from it")
    return 0


def measure(item: Object, missing: list[str], rounds: int) -> dict[str, Any]:
    """Milliseconds of every way to decode an object, best and median, and where ours spends them."""
    ways = {"ours": ours(item)} | {
        name: peer(item, name) for name in PEERS if name not in missing and reads(item, name)
    }
    if item.frame is not None:
        ways |= {f"{name}, {ALL_FRAMES}": peer(item, name, whole=True) for name in [*ways] if name != "ours"}
    planes = {name: way().astype(int) for name, way in ways.items()}  # and everything is warm
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            if sum(times[name]) < LONG_S:
                start = time.process_time()
                way()
                times[name].append(time.process_time() - start)
    return {
        "object": item.name,
        "bytes": len(item.data),
        "decoder": read_planes(item.data, _read_options(item)).decoder,
        "ms": {
            name: {"best": 1e3 * min(t), "median": 1e3 * statistics.median(t), "rounds": len(t)}
            for name, t in times.items()
        },
        "mean_difference": {name: float(np.abs(plane - planes["ours"]).mean()) for name, plane in planes.items()},
        "profile": profile(ways["ours"]),
    }


def ours(item: Object) -> Way:
    options = _read_options(item)
    return lambda: read_planes(item.data, options).planes[0]


def peer(item: Object, plugin: str, *, whole: bool = False) -> Way:
    """pydicom with one plugin; `whole`: all frames are decoded, for one of them."""

    def run() -> np.ndarray:
        dataset = pydicom.dcmread(io.BytesIO(item.data))
        index = None if whole else item.frame
        pixels = pixel_array(dataset, index=index, decoding_plugin=_plugin(dataset, plugin))
        pixels = pixels[item.frame] if whole else pixels
        if pixels.ndim == 3:
            return PREPROCESSING.apply(Frame(pixels=luminance(pixels, 255)))
        values = apply_modality_lut(pixels, dataset)
        return PREPROCESSING.apply(Frame(pixels=values.astype(np.float32, copy=False), deep=True))

    return run


def reads(item: Object, plugin: str) -> bool:
    """Whether pydicom has a decoder of that name for an object and it can."""
    try:
        peer(item, plugin)()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):  # what pydicom raises for what it lacks
        return False
    return True


def profile(way: Way, passes: int = 5) -> list[dict[str, Any]]:
    """The functions that take longest themselves, in milliseconds a pass; the profiler's own time is in them."""
    profiler = cProfile.Profile()
    for _ in range(passes):
        profiler.runcall(way)
    found = [
        {"function": f"{Path(file).stem}.{name}" if line else name, "ms": 1e3 * own / passes}
        for (file, line, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    ]
    return sorted(found, key=lambda row: -row["ms"])[:TOP]


def prepare(workers: int, data: Path | None) -> dict[str, Any]:
    """`deepmcat prepare` on every file of pydicom's corpora and, where it is there, of the cardiac set."""
    folders = [*CORPORA, *([data / "cardiac"] if data and (data / "cardiac").is_dir() else [])]
    files = sum(path.is_file() for folder in folders for path in folder.rglob("*"))
    command = [sys.executable, "-m", "deepmcat_client", "prepare", *map(str, folders), "--workers", str(workers)]
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        subprocess.run([*command, "--out", f"{work}/dataset"], check=True, capture_output=True)
        seconds = time.perf_counter() - start
    return {"workers": workers, "files": files, "cardiac": len(folders) == 3, "seconds": seconds}


def _plugin(dataset: pydicom.Dataset, wanted: str) -> str:
    """The plugin's name; nothing where no plugin decodes, as for pixels that are not compressed."""
    syntax = dataset.file_meta.TransferSyntaxUID
    native = not syntax.is_encapsulated or syntax == DeflatedExplicitVRLittleEndian
    if native or wanted in get_decoder(syntax).available_plugins:
        return "" if native else wanted
    if "pydicom" in get_decoder(syntax).available_plugins:  # RLE: its own decoder is what is left
        return "pydicom"
    raise NotImplementedError(f"{wanted} has no decoder for it")


def _read_options(item: Object) -> ReadOptions:
    """One frame, which of a cine is that in the middle."""
    return ReadOptions(preprocessing=PREPROCESSING, frames=FramePolicy(count=1))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/decode.json"), help="the JSON to write, or to read")
    parser.add_argument("--quick", action="store_true", help="three rounds and no prepare: a check that it all works")
    parser.add_argument("--page", action="store_true", help="write docs/decoding.md from the JSON; measures nothing")
    parser.add_argument("--data", type=Path, default=_data(), help="usually $DEEPMCAT_DATA")
    return parser.parse_args()


def _data() -> Path | None:
    return Path(os.environ["DEEPMCAT_DATA"]) if os.environ.get("DEEPMCAT_DATA") else None


if __name__ == "__main__":
    raise SystemExit(main())
