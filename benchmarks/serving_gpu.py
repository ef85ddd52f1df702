"""A GPU: images a second of encoding and serving on a part of MedNIST, beside the bare encoder.

    python benchmarks/serving_gpu.py [--device cuda] [--images 4000] [--size 128] [--encoders …] [--out FILE]

Reads mednist.tar in $DEEPMCAT_DATA. Works with --device cpu too, with few images. Rows:

- encode: the torch engine on prepared planes in batches, host copies included; the limit for serving. In each
  precision of the device, on CUDA with and without graphs (how many batch sizes have one), with the lowest cosine to
  float32, which says little of resnet18 and vgg16bn-sobel: they have random weights here.
- serve: raw planes streamed through the real server and client on this machine, and their share of `encode`: in
  float32, and in what `auto` chooses where that is another precision.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from deepmcat_client import AsyncClient, RawPlane
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.encoder import build_encoder, parse_encoder, pretrained
from deepmcat_core.engine import LARGEST_BATCH, batches, choose_device, open_engine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.planes import ReadOptions
from deepmcat_core.precision import AUTO, FLOAT32, REDUCED, kind_of
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_server.app import run_server
from deepmcat_server.config import Settings
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.finish import finish
from deepmcat_trainer.grouping import FinalSettings
from deepmcat_trainer.prepare import PrepareOptions, prepare
from deepmcat_trainer.splits import Shares

Images = npt.NDArray[np.uint8]

ENCODERS = ("efficientnet-lite0", "resnet18", "vgg16bn-sobel")
REPEATS = 3
SERVED_BATCH = 32


def main() -> int:
    options = _options()
    archive = Path(os.environ.get("DEEPMCAT_DATA", "")) / "mednist.tar"
    if "DEEPMCAT_DATA" not in os.environ or not archive.is_file():
        print("skipped: $DEEPMCAT_DATA has no mednist.tar; docs/data.md says where to get it", file=sys.stderr)
        return 0
    device = choose_device(options.device)
    console = Console(stderr=True)
    measured_on = machine.describe() | {"device": _device_name(device)}
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        dataset = _dataset(archive, folder, options.images, options.size)
        images = np.asarray(dataset.images)[:, None]  # (N, 1, S, S)
        rows = [row for encoder in options.encoders for row in encode(encoder, images, device)]
        rows += serve(dataset, images, folder, device, console)
    report = {
        "benchmark": "serving-gpu",
        "images": len(images),
        "size": options.size,
        "machine": measured_on,
        "results": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(rows, measured_on, Console(width=120))
    print(f"written to {options.out}")
    return 0


def encode(name: str, images: Images, device: str) -> Iterator[dict[str, Any]]:
    """The best of a few runs of the bare engine over all images, in every way to run it."""
    torch.manual_seed(0)
    spec = parse_encoder(name)
    encoder = pretrained(spec) if name == "efficientnet-lite0" else build_encoder(spec)
    kind = kind_of(device)
    exact: npt.NDArray[np.float32] | None = None
    for precision, graphs in product((FLOAT32, *REDUCED[kind]), (False, True) if kind == "cuda" else (False,)):
        engine = TorchEngine(copy.deepcopy(encoder), device, size=images.shape[-1], precision=precision, graphs=graphs)
        engine.warm([1 << i for i in range(LARGEST_BATCH[kind].bit_length())])  # set-up is not what is measured
        embeddings = engine.embed(images)
        exact = embeddings if exact is None else exact
        for batch in (SERVED_BATCH, LARGEST_BATCH[kind]):
            seconds = min(_seconds(lambda b=batch, e=engine: _in_batches(e, images, b)) for _ in range(REPEATS))
            yield {
                "what": "encode",
                "encoder": name,
                "precision": precision,
                "graphs": len(engine.graphs),
                "batch": batch,
                "images_per_s": len(images) / seconds,
                "min_cosine": float(np.einsum("nd,nd->n", embeddings, exact).min()),
            }
        engine.close()


def _in_batches(engine: TorchEngine, images: Images, batch: int) -> None:
    """Whole batches as an engine has them in one call; a server's one call each."""
    calls = [images] if batch >= LARGEST_BATCH[kind_of(engine.device)] else batches(images, batch)
    for part in calls:
        engine.embed(part)


def serve(dataset: Dataset, images: Images, folder: Path, device: str, console: Console) -> list[dict[str, Any]]:
    """Raw planes through the real server and client, which share this machine's CPUs."""
    encoder = pretrained(parse_encoder("efficientnet-lite0"))
    finish(encoder, dataset, FinalSettings(), {"recipe": "frozen"}, folder / "artifact", device=device, console=console)
    artifact = Artifact.load(folder / "artifact")
    for gate in artifact.manifest.precision_gates:
        console.print(gate)
    settings = Settings(
        listen="127.0.0.1:0", admin="127.0.0.1:0", drain_s=0, max_batch=SERVED_BATCH, max_stream_in_flight=256
    )
    rows: dict[str, dict[str, Any]] = {}
    for asked in (FLOAT32, AUTO):
        engine = open_engine(artifact, device=device, engine="torch", precision=asked)
        if engine.precision in rows:
            engine.close()
            continue
        seconds, graphs = asyncio.run(_stream(images, Categorizer(artifact, engine, settings.limits), settings))
        rows[engine.precision] = {
            "what": "serve: raw planes, one stream",
            "encoder": "efficientnet-lite0",
            "precision": engine.precision,
            "graphs": graphs,
            "batch": SERVED_BATCH,
            "images_per_s": len(images) / seconds,
        }
    return list(rows.values())


async def _stream(images: Images, categorizer: Categorizer, settings: Settings) -> tuple[float, int]:
    """Seconds, and how many batch sizes had a graph."""
    size = images.shape[-1]
    planes = [RawPlane(rows=size, columns=size, sample_type="uint8", data=plane.tobytes()) for plane in images]
    async with (
        run_server(settings, categorizer) as running,
        AsyncClient(str(running.listen), in_flight=256) as client,
    ):
        await client.categorize(planes[0])
        start = time.perf_counter()
        answered = [answer async for _, answer in client.categorize_stream(enumerate(planes))]
        seconds = time.perf_counter() - start
        assert isinstance(categorizer.engine, TorchEngine)
        graphs = len(categorizer.engine.graphs)
    failed = [answer for answer in answered if isinstance(answer, Exception)]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(planes)} images were not answered: {failed[0]}")
    return seconds, graphs


def print_report(rows: list[dict[str, Any]], measured_on: dict[str, Any], console: Console) -> None:
    """A row per measurement; serving beside the fastest of the bare encoder in that precision."""
    bare: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["what"] == "encode":
            key = (row["encoder"], row["precision"])
            bare[key] = max(row["images_per_s"], bare.get(key, 0.0))
    table = Table(box=None, pad_edge=False)
    words = ("what", "encoder", "precision")
    for heading in (*words, "graphs", "batch", "images/s", "of encode", "cosine"):
        table.add_column(heading, justify="left" if heading in words else "right")
    for row in rows:
        limit = bare.get((row["encoder"], row["precision"])) if row["what"].startswith("serve") else None
        share = f"{row['images_per_s'] / limit:.0%}" if limit else ""
        cosine = f"{row['min_cosine']:.5f}" if "min_cosine" in row else ""
        numbers = str(row["graphs"]), str(row["batch"]), f"{row['images_per_s']:,.0f}", share, cosine
        table.add_row(row["what"], row["encoder"], row["precision"], *numbers)
    console.print(table)
    console.print(f"{measured_on['device']}; {measured_on['cpu']}, {measured_on['cores']} cores; {measured_on['date']}")


def _dataset(archive: Path, folder: Path, images: int, size: int) -> Dataset:
    from mednist import sample

    options = PrepareOptions(
        sources=(str(sample(archive, folder / "sample.tar", images)),),
        out=folder / "dataset",
        shares=Shares.parse("80/20/0"),
        read=ReadOptions(preprocessing=Preprocessing(size=size)),
    )
    prepare(options)
    return Dataset.open(folder / "dataset")


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return "no GPU"
    return str(torch.cuda.get_device_name(device))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images a second of encoding and serving.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--images", type=int, default=4000, help="about so many images of MedNIST")
    parser.add_argument("--size", type=int, default=128, help="side of the encoder's input in pixels")
    parser.add_argument("--encoders", type=lambda text: text.split(","), default=list(ENCODERS))
    parser.add_argument("--out", type=Path, default=Path("runs/serving-gpu.json"), help="where the JSON goes")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
