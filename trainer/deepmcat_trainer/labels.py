"""What people know about the images already: for scoring only. Labels go to labels.parquet and nowhere else.

`--labels folders` takes the name of the folder around each file. `--labels FILE.csv` takes the columns path, label
and, if there is one, patient, which stands in where the header names no patient. A path is relative to its source
(inside an archive: the member's name) or absolute.
"""

from __future__ import annotations

import csv
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from deepmcat_core.errors import ConfigError
from deepmcat_trainer.identity import Identity
from deepmcat_trainer.journal import Journal

FOLDERS = "folders"


class FolderLabels:
    """The label of an image is the name of the folder around it."""

    lines = 0

    def find(self, image: sqlite3.Row) -> tuple[str, str]:
        """Label and patient key, "" where there is none."""
        return str(image["folder"]), ""

    def unmatched(self) -> int:
        """How many lines name no image."""
        return 0

    def missing(self) -> str:
        """What to say where no image got a label."""
        return "--labels folders found no label: the images have no folders around them"


class FileLabels:
    """Labels of a CSV file, kept in the journal while they are looked up. Raises ConfigError on construction."""

    def __init__(self, path: Path, journal: Journal, identity: Identity) -> None:
        self._path = path
        self._journal = journal
        self.lines = _take_in(path, journal, identity)

    def find(self, image: sqlite3.Row) -> tuple[str, str]:
        """Label and patient key, "" where there is none."""
        for name in (image["relative"], image["absolute"], image["locator"]):
            line = self._journal.one("SELECT label, patient FROM labels WHERE path = ?", name)
            if line is not None:
                self._journal.db.execute("UPDATE labels SET matched = 1 WHERE path = ?", (name,))
                return str(line["label"]), str(line["patient"])
        return "", ""

    def unmatched(self) -> int:
        """How many lines name no image."""
        return int(self._journal.one("SELECT COUNT(*) FROM labels WHERE NOT matched")[0])

    def missing(self) -> str:
        """What to say where no image got a label."""
        return (
            f"none of the {self.lines} lines of {self._path} gives an image here a label; its paths are absolute, or "
            "relative to SOURCE (the decoded images are kept: correct the file and give the same command again)"
        )


Labels = FolderLabels | FileLabels


def open_labels(argument: str, journal: Journal, identity: Identity) -> Labels:
    """The labels that `--labels` names. Raises ConfigError."""
    if argument == FOLDERS:
        return FolderLabels()
    return FileLabels(Path(argument), journal, identity)


def _take_in(path: Path, journal: Journal, identity: Identity) -> int:
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = _reader(path, file)

            def entries() -> Iterator[tuple[str, str, str]]:
                nonlocal line
                for entry in reader:
                    line += 1
                    patient = identity.patient(entry.get("patient") or "")
                    yield os.path.normpath(entry["path"] or ""), (entry["label"] or "").strip(), patient

            journal.start_labels(entries())
    except OSError as error:
        raise ConfigError(f"cannot read --labels {path}: {error.strerror}; it takes 'folders' or a CSV file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"the labels file {path} is not a CSV file in UTF-8") from error
    except sqlite3.IntegrityError as error:
        raise ConfigError(f"the labels file {path} names a path twice, again in entry {line}") from error
    return line


def _reader(path: Path, file: TextIO) -> csv.DictReader[str]:
    reader = csv.DictReader(file)
    if not {"path", "label"} <= set(reader.fieldnames or ()):
        raise ConfigError(f"the labels file {path} lacks the columns it needs: path, label and optionally patient")
    return reader
