"""A GPU: images a second of encoding and serving on a part of MedNIST, beside the bare encoder.

    python benchmarks/serving_gpu.py [--device cuda] [--images 4000] [--size 128] [--encoders …] [--out FILE]

Reads mednist.tar in $DEEPMCAT_DATA. Works with --device cpu too, with few images. Rows:

- encode: the torch engine on prepared planes in batches, host copies included; the limit for serving.
- serve: raw planes streamed through the real server and client on this machine, and their share of `encode`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from deepmcat_client import AsyncClient, RawPlane
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.encoder import build_encoder, parse_encoder, pretrained
from deepmcat_core.engine import choose_device, open_engine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.planes import ReadOptions
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
        rows = [encode(encoder, images, device) for encoder in options.encoders]
        rows.append(serve(dataset, images, folder, device, console))
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


def encode(name: str, images: Images, device: str) -> dict[str, Any]:
    """The best of a few runs of the bare engine over all images."""
    spec = parse_encoder(name)
    encoder = pretrained(spec) if name == "efficientnet-lite0" else build_encoder(spec)
    engine = TorchEngine(encoder, device, size=images.shape[-1])
    engine.embed(images[: min(len(images), 512)])  # set-up is not what is measured
    seconds = min(_seconds(lambda: engine.embed(images)) for _ in range(REPEATS))
    engine.close()
    return {"what": "encode", "encoder": name, "images_per_s": len(images) / seconds}


def serve(dataset: Dataset, images: Images, folder: Path, device: str, console: Console) -> dict[str, Any]:
    """Raw planes through the real server and client, which share this machine's CPUs."""
    encoder = pretrained(parse_encoder("efficientnet-lite0"))
    finish(encoder, dataset, FinalSettings(), {"recipe": "frozen"}, folder / "artifact", device=device, console=console)
    artifact = Artifact.load(folder / "artifact")
    engine = open_engine(artifact, device=device, engine="torch")
    settings = Settings(listen="127.0.0.1:0", admin="127.0.0.1:0", drain_s=0, max_stream_in_flight=256)
    seconds = asyncio.run(_stream(images, Categorizer(artifact, engine, settings.limits), settings))
    return {
        "what": "serve: raw planes, one stream",
        "encoder": "efficientnet-lite0",
        "images_per_s": len(images) / seconds,
    }


async def _stream(images: Images, categorizer: Categorizer, settings: Settings) -> float:
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
    failed = [answer for answer in answered if isinstance(answer, Exception)]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(planes)} images were not answered: {failed[0]}")
    return seconds


def print_report(rows: list[dict[str, Any]], measured_on: dict[str, Any], console: Console) -> None:
    """A row per measurement; serving beside the bare encoder that it runs."""
    bare = {row["encoder"]: row["images_per_s"] for row in rows if row["what"] == "encode"}
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "encoder", "images/s", "of encode"):
        table.add_column(heading, justify="right" if heading in ("images/s", "of encode") else "left")
    for row in rows:
        limit = bare.get(row["encoder"]) if row["what"].startswith("serve") else None
        share = f"{row['images_per_s'] / limit:.0%}" if limit else ""
        table.add_row(row["what"], row["encoder"], f"{row['images_per_s']:,.0f}", share)
    console.print(table)
    console.print(f"{measured_on['device']}; {measured_on['cpu']}, {measured_on['cores']} cores; {measured_on['date']}")


def _dataset(archive: Path, folder: Path, images: int, size: int) -> Dataset:
    from mednist import sample

    options = PrepareOptions(
        sources=(str(sample(archive, folder / "sample.tar", images)),),
        out=folder / "dataset",
        shares=Shares.parse("100/0/0"),
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
    import torch

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
