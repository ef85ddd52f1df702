"""Ids that survive: how many images keep their category's id when an artifact is trained again.

    python benchmarks/lineage.py [--limit 3000] [--only same-encoder] [--out FILE]

Reads mednist.tar in $DEEPMCAT_DATA. An artifact is trained on 80 % of a sample; its categories are named by the label
that most of their images have, and those of one label merged, as a person would who looks at them. Then each case
trains on the whole sample with --previous: 20 % of its images are new.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from mednist import KEY, SIZE, sample
from rich.console import Console
from rich.table import Table

from deepmcat_core.artifact import Artifact
from deepmcat_core.catalog import Catalog
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.lineage import OUTLIER
from deepmcat_trainer.previous import consult
from deepmcat_trainer.splits import Split

NEW = 5  # one image in so many is new


@dataclass(frozen=True, slots=True)
class Case:
    """recipe, arguments: of `deepmcat train`. named: whether people have named the artifact before."""

    recipe: str
    arguments: tuple[object, ...]
    named: bool = True


CASES = {
    "same-encoder": Case("frozen", ("--seed", 1)),
    "another-encoder": Case("deepmcat2021-small", ("--seed", 1, "--set", "epochs=3")),
    "same-encoder-not-named": Case("frozen", ("--seed", 1), named=False),
    "another-encoder-not-named": Case("deepmcat2021-small", ("--seed", 1, "--set", "epochs=3"), named=False),
}


def main() -> int:
    options = _options()
    archive = Path(os.environ.get("DEEPMCAT_DATA", "")) / "mednist.tar"
    if "DEEPMCAT_DATA" not in os.environ or not archive.is_file():
        print("skipped: $DEEPMCAT_DATA has no mednist.tar; docs/data.md says where to get it", file=sys.stderr)
        return 0
    measured_on = machine.describe()
    with tempfile.TemporaryDirectory(prefix="lineage-") as folder:
        results = measure(archive, Path(folder), options.only, options.limit)
    report = {"benchmark": "lineage", "limit": options.limit, "machine": measured_on, "results": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(results, Console(width=140))
    print(f"written to {options.out}")
    return 0


def measure(archive: Path, folder: Path, cases: list[str], limit: int) -> dict[str, Any]:
    """What became of the categories in each case, as its manifest says, and how many are named as their label."""
    (folder / "key").write_bytes(KEY)
    after = sample(archive, folder / "after.tar", limit)
    before = _without_new(after, folder / "before.tar")
    datasets = {name: _prepared(folder, name, tar) for name, tar in (("before", before), ("after", after))}
    old = {True: folder / "named", False: folder / "not-named"}
    for named, artifact in old.items():
        _deepmcat("train", datasets["before"], "--out", artifact, "--recipe", "frozen", "--seed", 0)
        if named:
            _name_by_labels(artifact, Dataset.open(datasets["before"]), folder / "names.csv")
    results = {}
    for name in cases:
        case, artifact = CASES[name], folder / name
        _deepmcat(
            "train", datasets["after"], "--out", artifact, "--recipe", case.recipe, *case.arguments,
            "--previous", old[case.named],
        )  # fmt: skip
        data = Dataset.open(datasets["after"])
        results[name] = Artifact.load(artifact).manifest.training["previous"] | {
            "named_right_before": _named_right(old[case.named], data) if case.named else None,
            "named_right_after": _named_right(artifact, data) if case.named else None,
        }
    return results


def print_report(results: dict[str, Any], console: Console) -> None:
    """A row per case."""
    headings = ("case", "categories", "kept", "split", "merged", "retired", "new", "images of kept", "keep their id",
                "outliers", "named right, old", "new")  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for name, result in results.items():
        changes = Counter(category["change"] for category in result["categories"])
        living = result["images_of_kept_categories"]
        shares = result["named_right_before"], result["named_right_after"]
        table.add_row(
            name, str(len(result["categories"])), *(str(changes[c]) for c in ("kept", "split", "merged", "retired")),
            str(len(result["new"])), f"{living / result['fit_images']:.1%}",
            f"{result['images_that_keep_their_id'] / max(1, living):.2%}",
            f"{result['outliers'] / result['fit_images']:.1%}",
            *("" if share is None else f"{share:.2%}" for share in shares),
        )  # fmt: skip
    console.print(table)
    console.print(
        "named right: images whose category has their label's name, by the artifact before and by the new one"
    )


def _prepared(folder: Path, name: str, archive: Path) -> Path:
    out = folder / f"dataset-{name}"
    _deepmcat("prepare", archive, "--out", out, "--labels", "folders", "--size", SIZE, "--key", folder / "key")
    return out


def _without_new(archive: Path, target: Path) -> Path:
    """The archive without one member in NEW."""
    with tarfile.open(archive) as source, tarfile.open(target, "w") as old:
        for i, member in enumerate(source.getmembers()):
            if i % NEW:
                old.addfile(member, source.extractfile(member))
    return target


def _answers(artifact: Path, dataset: Dataset) -> tuple[Catalog, list[int], list[str]]:
    """The catalog; the position of each fit image's category in it; its label."""
    answers = consult(artifact, dataset, "cpu")
    labels = dataset.labels()
    return answers.catalog, answers.held.tolist(), [labels[row] for row in dataset.indices(Split.FIT)]


def _named_right(artifact: Path, dataset: Dataset) -> float:
    catalog, held, labels = _answers(artifact, dataset)
    names = [category.name for category in catalog.active]
    return sum(a != OUTLIER and names[a] == label for a, label in zip(held, labels, strict=True)) / len(labels)


def _name_by_labels(artifact: Path, dataset: Dataset, file: Path) -> None:
    """Name every category by the label that most of its images have, and merge those of one label."""
    catalog, held, labels = _answers(artifact, dataset)
    named: dict[str, str] = {}
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(["category_id", "name", "codes", "merge_into"])
        for i, category in enumerate(catalog.active):
            votes = Counter(label for a, label in zip(held, labels, strict=True) if a == i)
            label = votes.most_common(1)[0][0] if votes else category.name
            writer.writerow([category.id, label, "", named.get(label, "")])
            named.setdefault(label, category.id)
    _deepmcat("names", "import", artifact, file)


def _deepmcat(*arguments: object) -> None:
    """Run a command as a person would."""
    command = [sys.executable, "-m", "deepmcat_client", *map(str, arguments)]
    print("$ deepmcat", *command[3:], file=sys.stderr)
    subprocess.run(command, check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How many images keep their category's id in a new artifact.")
    parser.add_argument("--limit", type=int, default=3000, help="images of the sample, of which a fifth is new")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="some of the cases")
    parser.add_argument("--out", type=Path, default=Path("runs/lineage.json"), help="where the JSON goes")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
