"""From the journal to the dataset's tables: labels, patients and splits are decided here, in two passes over it.

    images ──resolve──► label, patient, split; descriptions that patients share ──write──► *.parquet

Lines go through in batches, so memory does not grow with the dataset.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from deepmcat_trainer import dataset
from deepmcat_trainer.identity import Identity, private_file
from deepmcat_trainer.journal import Journal
from deepmcat_trainer.labels import Labels
from deepmcat_trainer.splits import Shares, Split, split_of

MIN_PATIENTS_OF_DESCRIPTION = 5
"""Free text stays only where at least so many patients share it: it is then no text about one of them."""

_BATCH = 8192
_FRAMES = """
SELECT frames.id, frames.frame, frames.digest, frames.row, frames.duplicate_of, images.flags, images.coded,
       images.descriptions, images.path, images.member, resolved.label, resolved.patient, resolved.split
FROM frames JOIN images ON images.seq = frames.image JOIN resolved ON resolved.image = frames.image
ORDER BY frames.seq
"""


def resolve(journal: Journal, identity: Identity, shares: Shares, labels: Labels | None) -> None:
    """Decide label, patient and split of each image, and count the patients of each description."""
    journal.start_finish()
    for image in journal.stream("SELECT * FROM images ORDER BY seq"):
        label, patient = labels.find(image) if labels else ("", "")
        if image["reason"] is None:
            _resolve_image(journal, identity, shares, image, label, image["patient"] or patient)


def _resolve_image(
    journal: Journal, identity: Identity, shares: Shares, image: sqlite3.Row, label: str, patient: str
) -> None:
    split = split_of(identity.key, patient or image["id"], shares)
    journal.db.execute("INSERT INTO resolved VALUES (?, ?, ?, ?)", (image["seq"], label or None, patient, split))
    if patient:
        texts = [(text, patient) for text in json.loads(image["descriptions"])]
        journal.db.executemany("INSERT OR IGNORE INTO mentions VALUES (?, ?)", texts)


def write_tables(journal: Journal, folder: Path, *, labelled: bool) -> None:
    """Write manifest, sources and, if there are labels, labels."""
    shared = _shared_descriptions(journal)
    (folder / dataset.LABELS).unlink(missing_ok=True)
    with (
        TableWriter(folder / dataset.MANIFEST, dataset.MANIFEST_SCHEMA) as manifest,
        TableWriter(folder / dataset.SOURCES, dataset.SOURCES_SCHEMA, private=True) as sources,
    ):
        for frame in journal.stream(_FRAMES):
            manifest.add(_manifest_line(frame, shared))
            sources.add({name: frame[name] for name in dataset.SOURCES_SCHEMA.names})
    if labelled:
        with TableWriter(folder / dataset.LABELS, dataset.LABELS_SCHEMA) as labels:
            for frame in journal.stream(_FRAMES):
                if frame["label"]:
                    labels.add({"id": frame["id"], "label": frame["label"]})


def rows_of_split(journal: Journal, split: Split) -> int:
    """How many rows are in a split."""
    query = "SELECT COUNT(*) FROM frames JOIN resolved USING (image) WHERE row IS NOT NULL AND split = ?"
    return journal.count(query, split)


def labelled_rows(journal: Journal) -> int:
    """How many rows have a label."""
    query = "SELECT COUNT(*) FROM frames JOIN resolved USING (image) WHERE row IS NOT NULL AND label IS NOT NULL"
    return journal.count(query)


def _shared_descriptions(journal: Journal) -> frozenset[str]:
    query = "SELECT text FROM mentions GROUP BY text HAVING COUNT(*) >= ?"
    return frozenset(str(line["text"]) for line in journal.stream(query, MIN_PATIENTS_OF_DESCRIPTION))


def _manifest_line(frame: sqlite3.Row, shared: frozenset[str]) -> dict[str, object]:
    coded: Mapping[str, str] = json.loads(frame["coded"])
    texts = (text for text in json.loads(frame["descriptions"]) if text in shared)
    return {
        "id": frame["id"],
        "patient": frame["patient"],
        "split": frame["split"],
        "digest": frame["digest"].hex(),
        "duplicate_of": frame["duplicate_of"],
        "row": frame["row"],
        "frame": frame["frame"],
        "flags": json.loads(frame["flags"]),
        **{name: coded.get(name) or None for name in dataset.CODED},
        dataset.DESCRIPTION: next(texts, None),
    }


class TableWriter:
    """Writes a Parquet file line by line, a batch in memory at a time."""

    def __init__(self, path: Path, schema: pa.Schema, *, private: bool = False) -> None:
        self._file: BinaryIO = private_file(path) if private else path.open("wb")
        self._schema = schema
        self._writer = pq.ParquetWriter(self._file, schema)
        self._lines: list[Mapping[str, object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._flush()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())

    def add(self, line: Mapping[str, object]) -> None:
        """Write a line."""
        self._lines.append(line)
        if len(self._lines) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._lines, schema=self._schema))
        self._lines.clear()
