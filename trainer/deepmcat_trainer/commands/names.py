"""`deepmcat names export|import ARTIFACT FILE.csv`: name and merge categories in a spreadsheet."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepmcat_core.artifact import Artifact
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.names_csv import apply_names, export_names, read_names


class Action(StrEnum):
    """What to do with the file."""

    EXPORT = "export"
    IMPORT = "import"


def command(
    action: Annotated[Action, typer.Argument(help="export: write the file; import: put its changes in force.")],
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact; a folder, not packed.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Columns category_id, name, codes and merge_into.")],
) -> None:
    """Write the categories to a CSV file, or read names, codes and merges from it as a new catalog version."""
    loaded = Artifact.load(artifact)
    console = Console()
    if action is Action.EXPORT:
        _write(file, export_names(loaded.catalog))
        count = len(loaded.catalog.active)
        console.print(f"{count} categories of catalog version {loaded.catalog.version} in {file}", markup=False)
        return
    catalog = apply_names(loaded.catalog, read_names(file))
    if catalog is loaded.catalog:
        console.print(f"nothing to change: catalog version {catalog.version} stays in force", markup=False)
        return
    loaded.append_catalog(catalog)
    console.print(f"catalog version {catalog.version} is in force: {len(catalog.active)} categories", markup=False)


def _write(file: Path, text: str) -> None:
    """Never over a file that is there: it may hold somebody's evening of naming."""
    try:
        with file.open("x", encoding="utf-8", newline="") as target:
            target.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{file} exists already; choose another name or remove it") from error
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
