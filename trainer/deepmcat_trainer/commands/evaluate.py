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
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.evaluate import CutScores, Evaluation, evaluate
from deepmcat_trainer.splits import Split

COLUMNS = (
    ("purity", "purity"),
    ("balanced", "balanced_purity"),
    ("worst", "worst_recall"),
    ("mapped", "mapped_purity"),
    ("m. balanced", "mapped_balanced_purity"),
    ("m. worst", "mapped_worst_recall"),
    ("inverse", "inverse_purity"),
    ("NMI", "nmi"),
    ("AMI", "ami"),
    ("ARI", "ari"),
    ("accuracy", "accuracy"),
)


def command(
    artifact: Annotated[Path, typer.Argument(help="The artifact.")],
    dataset: Annotated[Path, typer.Argument(help="A dataset prepared with --labels.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the scores here.")
    ] = None,
    split: Annotated[Split, typer.Option(help="The images to score.")] = Split.TEST,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Score the clusters against labels, at several cuts of the merge tree.

    Images are assigned by the nearest centroid, as the server does it. The mapped figures learn which class a group
    is from the labels of the fit split; the others from the majority of the scored images themselves.
    """
    made, data = Artifact.load(artifact), Dataset.open(dataset)
    evaluation = evaluate(made, data, lambda: open_engine(made, device=device), split)
    print_evaluation(evaluation, Console())
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {json_file}: {error.strerror}") from error


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the scores as a table, a line per cut."""
    table = Table(box=None, pad_edge=False)
    for heading in ("k", *(heading for heading, _ in COLUMNS)):
        table.add_column(heading, justify="right")
    for cut in evaluation.cuts:
        table.add_row(_name(cut, evaluation), *(f"{getattr(cut, key):.3f}" for _, key in COLUMNS))
    console.print(f"{evaluation.n:,} images of {evaluation.classes} classes, {evaluation.split} split")
    console.print(table)


def _name(cut: CutScores, evaluation: Evaluation) -> str:
    notes = {evaluation.suggested_k: "suggested", evaluation.fine_k: "fine"}
    return f"{notes[cut.k]} {cut.k}" if cut.k in notes else str(cut.k)
