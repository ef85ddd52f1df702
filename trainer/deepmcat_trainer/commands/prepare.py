"""`deepmcat prepare`: from an archive to a dataset."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deepmcat_core.cpus import available_cpus
from deepmcat_core.errors import ArtifactFormat, ConfigError
from deepmcat_core.frame import FramePolicy, Intensity, Limits
from deepmcat_core.planes import ReadOptions
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.choices import one_of
from deepmcat_trainer.prepare import PrepareOptions, prepare
from deepmcat_trainer.splits import Shares


class IntensityMode(StrEnum):
    """How monochrome values of more than display range become grey."""

    PERCENTILE = "percentile"
    WINDOW = "window"


def command(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Folders, tar or zip archives, @list files, images.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DATASET", help="The folder to make.")],
    labels: Annotated[
        str | None, typer.Option(metavar="folders|FILE.csv", help="Labels, for scoring only; training never sees them.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the square that images are fitted into, in pixels.")] = 128,
    frames: Annotated[int, typer.Option(help="How many frames of a multi-frame image are used, evenly spaced.")] = 3,
    intensity: Annotated[
        str,
        typer.Option(
            metavar="|".join(IntensityMode), help="Grey from robust percentiles, or from the image's own window."
        ),
    ] = IntensityMode.PERCENTILE.value,
    split: Annotated[
        str | None,
        typer.Option(metavar="FIT/CALIBRATION/TEST", help="Percentages; usually 90/10/0, with labels 60/10/30."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of the ids; usually a random one is made beside them.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Decoding processes; usually one a core.")] = None,
) -> None:
    """Read an archive into a dataset that `train` takes. Killed, it goes on when the same command is given again."""
    summary = prepare(
        PrepareOptions(
            sources=tuple(sources),
            out=out,
            labels=labels,
            shares=Shares.parse(split) if split else None,
            key=key,
            workers=_at_least_one("--workers", workers) if workers is not None else available_cpus(),
            read=_read_options(size, frames, intensity),
        )
    )
    for line in summary.lines():
        typer.echo(line)


def _read_options(size: int, frames: int, intensity: str) -> ReadOptions:
    mode, limits = one_of(IntensityMode, intensity, "--intensity"), Limits()
    if _at_least_one("--frames", frames) > limits.max_frames:
        raise ConfigError(f"--frames is {frames}; 1 to {limits.max_frames} is allowed")
    try:
        preprocessing = Preprocessing(size=size, intensity=Intensity(mode=mode.value))
    except ArtifactFormat as error:
        raise ConfigError(f"--size: {error}") from error
    return ReadOptions(preprocessing=preprocessing, frames=FramePolicy(count=frames), limits=limits)


def _at_least_one(option: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{option} is {value}; it takes 1 or more")
    return value
