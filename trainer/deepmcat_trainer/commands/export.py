"""`deepmcat export ARTIFACT`: what an artifact computes, for other servers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deepmcat_core.artifact import Artifact
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.triton_repository import write_onnx, write_repository


class Backend(StrEnum):
    """What runs the encoder in Triton."""

    ONNXRUNTIME = "onnxruntime"
    PYTHON = "python"


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", metavar="FILE", help="Write the encoder as ONNX.")] = None,
    triton: Annotated[
        Path | None, typer.Option("--triton", metavar="DIR", help="Write a Triton model repository: a new folder.")
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="What runs the encoder in Triton; python: ONNX Runtime in the Python backend.")
    ] = Backend.ONNXRUNTIME,
) -> None:
    """Write the encoder as ONNX, or all that answers for preprocessed planes as a Triton model repository.

    A repository has the catalog version in force now; export again when categories were renamed.
    """
    if onnx is None and triton is None:
        raise ConfigError("nothing to export was named: give --onnx FILE or --triton DIR")
    loaded = Artifact.load(artifact)
    if onnx is not None:
        write_onnx(loaded, onnx)
        typer.echo(f"{onnx}: images (B, 1, S, S) uint8 to embeddings (B, {loaded.manifest.dim}) float32")
    if triton is not None:
        write_repository(loaded, triton, backend=backend.value)
        typer.echo(f"{triton}: start Triton with --model-repository {triton}, and call its model deepmcat")
