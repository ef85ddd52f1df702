"""`deepmcat sheets`: a page of images for each category."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from deepmcat_core.artifact import Artifact
from deepmcat_core.centroids import Centroids
from deepmcat_core.engine import open_engine
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.contact_sheet import choose, write_sheets
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.evaluate import check_same_pixels
from deepmcat_trainer.features import embed
from deepmcat_trainer.targets import require_folder, unwritable

SAMPLE = 20_000  # images looked at: enough to show every category, in a minute or two
SEED = 0


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset prepared as the artifact's was.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the pages: a new or an empty one.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write a PNG per category with its nearest, some in-between and its farthest images.

    These pages are patient images: keep them where such images may be.
    """
    made, data = Artifact.load(artifact), Dataset.open(dataset)
    check_same_pixels(made, data)
    _make_room(out)
    indices = np.arange(len(data))
    if len(data) > SAMPLE:
        indices = np.sort(np.random.default_rng(SEED).choice(len(data), SAMPLE, replace=False))
    engine = open_engine(made, device=device)
    embeddings = embed(engine, data.images, indices, description="embedding the images")
    clusters, distances = Centroids(made.centroids, engine.device).nearest(embeddings, 1)
    try:
        paths = write_sheets(choose(made.catalog, clusters[:, 0], distances[:, 0]), data.images, indices, out)
    except OSError as error:
        raise unwritable(out, "--out", error) from error
    typer.echo(f"{len(paths)} contact sheets in {out} (patient images)")


def _make_room(out: Path) -> None:
    """An empty folder. Pictures of patients are not strewn among other things, nor old pages among new ones."""
    require_folder(out, "--out")
    if next(out.iterdir(), None) is not None:
        raise ConfigError(f"{out} is not empty, and the pages are images of patients: choose a new folder as --out")
