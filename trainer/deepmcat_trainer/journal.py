"""What a run has done so far, on disk: so that memory stays flat, and a killed run goes on where it was.

One SQLite file (mode 0600) beside the unfinished dataset. It may hold what no dataset may (descriptions as they are
in headers), and is deleted when the dataset is complete.

    settings      what decides the pixels and ids; a run with others may not go on with it
    images        one line per image or failure, in the order of the sources
    frames        one line per used frame
    kept          digest → the frame that was kept
    labels        the lines of --labels FILE.csv
    resolved      label, patient and split of each image: made anew by every finish
    mentions      which patients share a description: made anew by every finish
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepmcat_core.errors import ConfigError
from deepmcat_trainer.identity import private_file
from deepmcat_trainer.reading import Reading
from deepmcat_trainer.sources import SourceItem

DESCRIPTIONS = ("SeriesDescription", "ProtocolName")
"""The free text that may describe an image in a catalog, the better one first."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, relative TEXT, locator TEXT, absolute TEXT, path TEXT,
    member TEXT, folder TEXT, reason TEXT, patient TEXT, descriptions TEXT, coded TEXT, flags TEXT, decoder TEXT);
CREATE TABLE IF NOT EXISTS frames (
    seq INTEGER PRIMARY KEY, image INTEGER NOT NULL, id TEXT NOT NULL, frame INTEGER NOT NULL, digest BLOB NOT NULL,
    row INTEGER, duplicate_of TEXT);
CREATE TABLE IF NOT EXISTS kept (digest BLOB PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
"""

_FINISH_SCHEMA = """
DROP TABLE IF EXISTS resolved;
DROP TABLE IF EXISTS mentions;
CREATE TABLE resolved (image INTEGER PRIMARY KEY, label TEXT, patient TEXT NOT NULL, split TEXT NOT NULL);
CREATE TABLE mentions (text TEXT, patient TEXT, PRIMARY KEY (text, patient)) WITHOUT ROWID;
"""

_LABELS_SCHEMA = """
DROP TABLE IF EXISTS labels;
CREATE TABLE labels (path TEXT PRIMARY KEY, label TEXT, patient TEXT, matched INTEGER DEFAULT 0) WITHOUT ROWID;
"""


class Journal:
    """The journal of one dataset in the making. One process at a time has it; another gets a ConfigError."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            private_file(path).close()
        self.db = sqlite3.connect(path, timeout=0, isolation_level=None)
        self.db.row_factory = sqlite3.Row
        try:
            self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.db.execute("PRAGMA journal_mode = TRUNCATE")
            self.db.execute("PRAGMA cache_size = -65536")  # KiB: the digests are looked up at random
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executescript(_SCHEMA)
            self.db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            self.db.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise ConfigError(
                "another `deepmcat prepare` is at work on this --out; wait for it or choose another --out"
            ) from error
        except sqlite3.DatabaseError as error:
            self.db.close()
            raise ConfigError(f"the unfinished dataset in {path.parent} is damaged: remove it to begin anew") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.db.close()

    def commit(self) -> None:
        """Make what was recorded since the last commit permanent."""
        self.db.execute("COMMIT")
        self.db.execute("BEGIN IMMEDIATE")

    def settle(self, settings: Mapping[str, object]) -> None:
        """Remember the settings of a run, or refuse to go on with other ones than it began with. Raises ConfigError."""
        new = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        old: dict[str, str] = dict(self.db.execute("SELECT name, value FROM settings"))
        if old != new and self.count("SELECT COUNT(*) FROM images"):
            changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            raise ConfigError(
                f"an unfinished dataset is there, begun with other options ({', '.join(changed)}): give the same ones "
                "to go on with it, choose another --out, or remove it"
            )
        self.db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", new.items())
        self.commit()

    def has(self, image_id: str) -> bool:
        """Whether the image is recorded."""
        return self.one("SELECT 1 FROM images WHERE id = ?", image_id) is not None

    def rows(self) -> int:
        """How many rows of images.npy are recorded."""
        return self.count("SELECT COUNT(*) FROM kept")

    def decoders(self) -> tuple[str, ...]:
        """What decoded the images."""
        query = "SELECT DISTINCT decoder FROM images WHERE decoder IS NOT NULL ORDER BY decoder"
        return tuple(str(line["decoder"]) for line in self.stream(query))

    def add_failure(self, image_id: str, item: SourceItem, reason: str) -> bool:
        """Record an image that could not be read. False where it is recorded already."""
        return self._add_image(image_id, item, reason=reason) is not None

    def add_image(self, image_id: str, item: SourceItem, reading: Reading, patient: str) -> int | None:
        """Record an image; returns its number, or None where it is recorded already."""
        texts = [_normalised(reading.header.descriptions.get(name, "")) for name in DESCRIPTIONS]
        return self._add_image(
            image_id,
            item,
            patient=patient,
            descriptions=json.dumps([text for text in texts if text]),
            coded=json.dumps(reading.header.coded),
            flags=json.dumps(reading.flags),
            decoder=reading.decoder,
        )

    def add_frame(
        self, image: int, frame_id: str, *, frame: int, digest: bytes, row: int | None, duplicate_of: str | None
    ) -> None:
        """Record one used frame: kept as a row, or a duplicate of another frame."""
        self.db.execute(
            "INSERT INTO frames (image, id, frame, digest, row, duplicate_of) VALUES (?, ?, ?, ?, ?, ?)",
            (image, frame_id, frame, digest, row, duplicate_of),
        )
        if row is not None:
            self.db.execute("INSERT INTO kept VALUES (?, ?)", (digest, frame_id))

    def kept(self, digest: bytes) -> str | None:
        """The frame that was kept of those with this digest."""
        found = self.one("SELECT id FROM kept WHERE digest = ?", digest)
        return found and str(found[0])

    def start_labels(self, lines: Iterable[tuple[str, str, str]]) -> None:
        """Take in (path, label, patient key), in place of any taken in before. Raises sqlite3.IntegrityError."""
        self._remake(_LABELS_SCHEMA)
        self.db.executemany("INSERT INTO labels (path, label, patient) VALUES (?, ?, ?)", lines)

    def start_finish(self) -> None:
        """Forget what an earlier finish resolved."""
        self._remake(_FINISH_SCHEMA)

    def one(self, query: str, *values: object) -> Any:
        """The first line of the answer, or None."""
        return self.db.execute(query, values).fetchone()

    def count(self, query: str, *values: object) -> int:
        """The number that the query asks for."""
        return int(self.one(query, *values)[0])

    def stream(self, query: str, *values: object) -> Iterator[Any]:
        """The lines of the answer, one after the other."""
        return iter(self.db.execute(query, values))

    def _remake(self, schema: str) -> None:
        self.db.executescript(schema)  # commits what is open
        self.db.execute("BEGIN IMMEDIATE")

    def _add_image(self, image_id: str, item: SourceItem, **columns: str) -> int | None:
        values = {
            "id": image_id,
            "locator": item.locator,
            "relative": item.relative,
            "absolute": item.absolute,
            "path": item.path,
            "member": item.member,
            "folder": item.folder,
            **columns,
        }
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        cursor = self.db.execute(
            f"INSERT OR IGNORE INTO images ({names}) VALUES ({marks})",  # noqa: S608 - names of our own columns
            [printable(value) for value in values.values()],
        )
        return cursor.lastrowid if cursor.rowcount else None


def printable(text: str) -> str:
    """Text that can be stored: bytes of a file name that are not UTF-8 become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _normalised(text: str) -> str:
    """A description as patients are counted over it: without differences of case and spacing."""
    return " ".join(text.encode("utf-8", "replace").decode().split()).casefold()
