"""`deepmcat evaluate`: score an artifact against labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepmcat_core.artifact import Artifact
from deepmcat_core.engine import open_engine
from deepmcat_trainer.choices import one_of
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.evaluate import CutScores, Evaluation, evaluate
from deepmcat_trainer.splits import Split
from deepmcat_trainer.targets import require_file, unwritable

COLUMNS = {
    "purity": "purity",
    "bal.": "balanced_purity",
    "worst": "worst_recall",
    "mapped purity": "mapped_purity",
    "mapped bal.": "mapped_balanced_purity",
    "mapped worst": "mapped_worst_recall",
    "inv. pur.": "inverse_purity",
    "NMI": "nmi",
    "AMI": "ami",
    "ARI": "ari",
    "acc.": "accuracy",
}  # headings that wrap to fit 80 columns


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset prepared with --labels.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the scores here.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="|".join(Split), help="The images to score.")] = Split.TEST.value,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Score the clusters against labels, at several cuts of the merge tree.

    Images are assigned by the nearest centroid, as the server does it. The mapped figures learn which class a group
    is from the labels of the fit split; the others from the majority of the scored images themselves.
    """
    chosen = one_of(Split, split, "--split")
    made, data = Artifact.load(artifact), Dataset.open(dataset)
    if json_file is not None:
        require_file(json_file, "--json")
    evaluation = evaluate(made, data, lambda: open_engine(made, device=device), chosen)
    print_evaluation(evaluation, Console())
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise unwritable(json_file, "--json", error) from error


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the scores as a table, a line per cut."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("k", *COLUMNS):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=heading == "k")
    for cut in evaluation.cuts:
        table.add_row(_name(cut, evaluation), *(f"{getattr(cut, key):.3f}" for key in COLUMNS.values()))
    console.print(f"{evaluation.n:,} images of {evaluation.classes} classes, {evaluation.split} split")
    console.print(table)
    console.print("* the suggested cut; bal., worst: the mean and the worst recall of a class", highlight=False)


def _name(cut: CutScores, evaluation: Evaluation) -> str:
    fine = "fine " if cut.k == evaluation.fine_k else ""
    return f"{fine}{'*' if cut.k == evaluation.suggested_k else ''}{cut.k}"
