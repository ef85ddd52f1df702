"""What `gpu.py` knows of recipes, and how its results are written and shown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from deepmcat_core.encoder import Encoder
from deepmcat_trainer import encoders
from deepmcat_trainer.evaluate import CutScores

SCORES = ("purity", "worst_recall", "mapped_balanced_purity", "ari")
VIEWS = {"refine": 2, "deepcluster-v2": 2, "vicreg": 2}
PASSES = {"deepmcat2021": 1.4, "refine": 1.4}  # a pass over all images for targets costs about so much more an epoch


def views(recipe: Any) -> int:
    """How many views of each image pass the network in a step."""
    return VIEWS.get(recipe.name, 1)


def passes(recipe: Any) -> float:
    """What an epoch costs beside its training steps alone."""
    return PASSES.get(recipe.name, 1.1)


def network(recipe: Any, settings: Any, size: int) -> Encoder:
    """The network that a recipe trains, random weights or not: speed does not depend on them."""
    return encoders.from_scratch(settings, size)


def plain(cuts: Iterable[CutScores]) -> list[dict[str, Any]]:
    return [asdict(cut) for cut in cuts]


def write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """A cell, as soon as it is known."""
    first = at(row, 1)
    return (
        f"{row['method']} seed {row['seed']}: {row['epochs']} of {row['planned']} epochs in {row['train_s']:.0f} s, "
        f"k = {first['k']}: purity {first['purity']:.4f}, worst recall {first['worst_recall']:.3f}"
    )


def at(row: dict[str, Any], factor: int) -> dict[str, Any]:
    """The scores at so many times the number of classes, or at all there are where that is less."""
    k = min(factor * row["classes"], row["fine_k"])
    return next(cut for cut in row["cuts"] if cut["k"] == k)


def show(report: dict[str, Any], console: Console) -> None:
    """A row a method: means over the seeds, and the standard deviation of each score."""
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "seeds", "epochs", "train s", "images/s", "limit", "of it", "k", *SCORES):
        table.add_column(heading.replace("_", " "), justify="left" if heading == "method" else "right")
    for method in dict.fromkeys(row["method"] for row in report["results"]):
        rows = [row for row in report["results"] if row["method"] == method]
        for factor in (1, 2):
            head = _head(method, rows) if factor == 1 else [""] * 7
            table.add_row(*head, str(at(rows[0], factor)["k"]), *(_mean(rows, factor, score) for score in SCORES))
    console.print(table)
    measured_on = report["machine"]
    console.print(f"{measured_on['device']}; {measured_on['cpu']}, {measured_on['cores']} cores; {measured_on['date']}")
    if report["missing"]:
        console.print(f"{len(report['missing'])} trainings did not fit into the time: {report['missing']}")
    if report["small"]:
        console.print("small: the path runs; none of these figures is a result")


def _head(method: str, rows: list[dict[str, Any]]) -> list[str]:
    seconds = np.mean([row["train_s"] for row in rows])
    epochs = f"{min(row['epochs'] for row in rows)}"
    if rows[0]["limit_images_per_s"] is None:
        return [method, str(len(rows)), epochs, f"{seconds:.0f}", "", "", ""]
    speed, limit = np.mean([row["images_per_s"] for row in rows]), rows[0]["limit_images_per_s"]
    return [
        method, str(len(rows)), epochs, f"{seconds:.0f}", f"{speed:,.0f}", f"{limit:,.0f}", f"{speed / limit:.0%}",
    ]  # fmt: skip


def _mean(rows: list[dict[str, Any]], factor: int, score: str) -> str:
    values = [at(row, factor)[score] for row in rows]
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def device_name(device: str) -> str:
    return str(torch.cuda.get_device_name(device)) if device.startswith("cuda") else "no GPU"
