"""Where a dataset is made: in `.NAME.partial` beside its place, under its own name only when it is complete.

.NAME.partial/journal.sqlite    what is done, for the next run
.NAME.partial/dataset/          becomes NAME by one rename
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepmcat_core.durable import sync_directory
from deepmcat_core.errors import ConfigError
from deepmcat_trainer import dataset
from deepmcat_trainer.targets import require_folder, unwritable


class NothingToPrepare(ConfigError):
    """There is nothing worth going on with: what was begun is removed."""


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """The folder of the unfinished dataset: kept for the next run, unless there is nothing to go on with."""
    partial = out.parent / f".{out.name}.partial"
    folder = partial / "dataset"
    try:
        _require_free(out, partial)
        require_folder(out.parent, "--out", called=out.name)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, "--out", error) from error
    try:
        yield folder
    except NothingToPrepare:
        shutil.rmtree(partial)
        raise
    except (OSError, sqlite3.OperationalError) as error:  # a full disk, a quota, a share that went away
        why = error.strerror if isinstance(error, OSError) else "the disk is full or failing"
        raise ConfigError(
            f"cannot write the dataset at {out}: {why}; what is done is kept: correct that and give the same command "
            "again to go on"
        ) from error


def publish(folder: Path, out: Path) -> None:
    """Give the complete dataset its name, then delete the journal with what only it may hold."""
    try:
        folder.rename(out)
    except OSError as error:
        raise ConfigError(
            f"the dataset is complete, but cannot be given its name {out}: {error.strerror}; correct that and give the "
            "same command again"
        ) from error
    sync_directory(out.parent)
    shutil.rmtree(folder.parent)


def _require_free(out: Path, partial: Path) -> None:
    """Nothing is overwritten. Raises ConfigError."""
    if (out / dataset.INFO).exists():
        shutil.rmtree(partial, ignore_errors=True)  # a run was killed after the dataset was complete
        raise ConfigError(f"there is a dataset at {out} already; choose another --out or remove it")
    if not out.exists():
        return
    if out.is_mount():
        raise ConfigError(
            f"{out} is where a disk is mounted, and a dataset is a folder: choose --out {out / 'dataset'}"
        )
    if not (out.is_dir() and next(out.iterdir(), None) is None):
        raise ConfigError(f"{out} exists and is not an empty folder; choose another --out")
