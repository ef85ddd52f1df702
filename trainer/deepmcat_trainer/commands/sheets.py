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

SAMPLE = 20_000  # images looked at: enough to show every category, in a minute or two
SEED = 0


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset prepared as the artifact's was.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the pages, made where missing.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write a PNG per category with its nearest, some in-between and its farthest images.

    These pages are patient images: keep them where such images may be.
    """
    made, data = Artifact.load(artifact), Dataset.open(dataset)
    check_same_pixels(made, data)
    indices = np.arange(len(data))
    if len(data) > SAMPLE:
        indices = np.sort(np.random.default_rng(SEED).choice(len(data), SAMPLE, replace=False))
    engine = open_engine(made, device=device)
    embeddings = embed(engine, data.images, indices, description="embedding the images")
    clusters, distances = Centroids(made.centroids, engine.device).nearest(embeddings, 1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = write_sheets(choose(made.catalog, clusters[:, 0], distances[:, 0]), data.images, indices, out)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    typer.echo(f"{len(paths)} contact sheets in {out} (patient images)")
