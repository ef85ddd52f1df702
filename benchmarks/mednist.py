"""MedNIST: how well and how fast, beside raw-pixel k-means.

    python benchmarks/mednist.py [--only frozen,raw-pixels-64] [--limit 1200] [--seed 0] [--out FILE]

Reads mednist.tar in $DEEPMCAT_DATA, and runs the commands that a person would type: prepare once, then train and
evaluate each recipe. Patients of MedNIST are unknown, so its split is by image, exact duplicates left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table

RECIPES = ("frozen", "deepmcat2021-small")
PIXELS = ("raw-pixels-64", "raw-pixels-128")
METHODS = (*RECIPES, *PIXELS)
CLASSES = 6
FACTORS = (1, 1.5, 2, 4)
SIZE = 128
KEY = b"mednist benchmark: a published key, so that everybody's split is the same\n"
COLUMNS = ("purity", "balanced_purity", "worst_recall", "mapped_balanced_purity", "mapped_worst_recall", "nmi", "ari")


def main() -> int:
    options = _options()
    archive = Path(os.environ.get("DEEPMCAT_DATA", "")) / "mednist.tar"
    if "DEEPMCAT_DATA" not in os.environ or not archive.is_file():
        print("skipped: $DEEPMCAT_DATA has no mednist.tar; docs/data.md says where to get it", file=sys.stderr)
        return 0
    measured_on = machine.describe()
    with tempfile.TemporaryDirectory(prefix="mednist-") as folder:
        results = measure(archive, Path(folder), options.only, options.limit, options.seed)
    report = {
        "benchmark": "mednist",
        "limit": options.limit,
        "seed": options.seed,
        "machine": measured_on,
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(results, Console(width=140))
    print(f"written to {options.out}")
    return 0


def measure(archive: Path, folder: Path, methods: list[str], limit: int | None, seed: int) -> dict[str, Any]:
    """Scores and seconds of each method, all on one prepared dataset."""
    (folder / "key").write_bytes(KEY)
    source = archive if limit is None else sample(archive, folder / "sample.tar", limit)
    dataset = folder / "dataset"
    prepared = _deepmcat(
        "prepare", source, "--out", dataset, "--labels", "folders", "--size", SIZE, "--key", folder / "key"
    )
    results: dict[str, Any] = {}
    for recipe in (m for m in methods if m in RECIPES):
        artifact, scores = folder / recipe, folder / f"{recipe}.json"
        trained = _deepmcat("train", dataset, "--out", artifact, "--recipe", recipe, "--seed", seed)
        evaluated = _deepmcat("evaluate", artifact, dataset, "--json", scores)
        steps = {"prepare": prepared, "train": trained, "evaluate": evaluated}
        results[recipe] = {
            "seconds": {name: step["seconds"] for name, step in steps.items()},
            "peak_mb": {name: step["peak_mb"] for name, step in steps.items()},
            "evaluation": json.loads(scores.read_text()),
        }
    pixels = [m for m in methods if m in PIXELS]
    if pixels:
        import baselines

        from deepmcat_trainer.clustering import default_k
        from deepmcat_trainer.dataset import Dataset

        opened = Dataset.open(dataset)
        fine_k = default_k(len(opened.indices("fit")))
        ks = [*(round(factor * CLASSES) for factor in FACTORS), fine_k]
        for method in pixels:
            print(f"$ k-means on {method}", file=sys.stderr)
            results[method] = baselines.raw_pixels(opened, int(method.rpartition("-")[2]), ks)
    return results


def print_report(results: dict[str, Any], console: Console) -> None:
    """A row per method and k, and the seconds."""
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "k", *COLUMNS):
        table.add_column(heading.replace("_", " "), justify="left" if heading == "method" else "right")
    for method, result in results.items():
        evaluation = result["evaluation"]
        for cut in evaluation["cuts"]:
            k = f"{'*' if cut['k'] == evaluation['suggested_k'] else ''}{cut['k']}"
            table.add_row(method, k, *(f"{cut[column]:.3f}" for column in COLUMNS))
        table.add_section()
    console.print(table)
    console.print("* the suggested cut, chosen without labels")
    for method, result in results.items():
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items())
        peak = f", peak {max(result['peak_mb'].values()):,} MB a process" if "peak_mb" in result else ""
        console.print(f"{method}: {steps}; {sum(result['seconds'].values()):.0f} s together{peak}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="MedNIST: purity and seconds of the recipes, beside raw pixels.")
    parser.add_argument("--only", type=_methods, default=list(METHODS), help=f"some of {','.join(METHODS)}")
    parser.add_argument("--limit", type=int, help="a quick run on about so many images")
    parser.add_argument("--seed", type=int, default=0, help="of training and of the final stage; the split stays")
    parser.add_argument("--out", type=Path, default=Path("runs/mednist.json"), help="where the JSON goes")
    return parser.parse_args()


def _methods(text: str) -> list[str]:
    methods = text.split(",")
    if unknown := set(methods) - set(METHODS):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is not one of {', '.join(METHODS)}")
    return methods


def sample(archive: Path, target: Path, limit: int) -> Path:
    """A tar of about `limit` members, evenly spaced over the archive and so over its classes."""
    with tarfile.open(archive) as source, tarfile.open(target, "w") as sample:
        members = [m for m in source.getmembers() if m.isfile()]
        step = max(1, len(members) // limit)
        for member in members[::step]:
            sample.addfile(member, source.extractfile(member))
    return target


def _deepmcat(*arguments: object) -> dict[str, float]:
    """Run a command as a person would; its seconds, start-up included, and the peak memory of its largest process."""
    command = [sys.executable, "-m", "deepmcat_client", *map(str, arguments)]
    print("$ deepmcat", *command[3:], file=sys.stderr)
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(code)
    return {"seconds": round(time.monotonic() - start, 1), "peak_mb": usage.ru_maxrss // 1024}


if __name__ == "__main__":
    raise SystemExit(main())
