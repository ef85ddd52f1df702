"""From an archive to a dataset: every image decoded once, the same way the server will decode it.

    SOURCE ─walk─► items ─DecodePool─► readings ─in order─► images.npy + journal ─finish─► the dataset

Workers read and decode; this process keeps a bounded window of items in flight, takes the answers in the order of the
sources, and writes them down. So the result does not depend on the number of workers, memory does not grow with the
archive, and a run that was killed goes on when the same command is given again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from deepmcat_core.cpus import available_cpus
from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.durable import write_synced
from deepmcat_core.errors import ConfigError, NotAnImage
from deepmcat_core.planes import ReadOptions
from deepmcat_trainer import dataset, report, tables
from deepmcat_trainer.dataset import Info
from deepmcat_trainer.identity import Identity, own_key, read_key
from deepmcat_trainer.images_file import ImagesFile
from deepmcat_trainer.journal import Journal
from deepmcat_trainer.labels import FOLDERS, Labels, open_labels
from deepmcat_trainer.progress import Progress, progress
from deepmcat_trainer.reading import Reading
from deepmcat_trainer.readings import read_in_order
from deepmcat_trainer.report import Summary
from deepmcat_trainer.sources import Source, SourceItem, Walk, absolute, items, open_sources
from deepmcat_trainer.splits import LABELLED, UNLABELLED, Shares, Split
from deepmcat_trainer.workspace import NothingToPrepare, partial_folder, publish


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What to prepare, and how.

    labels: "folders" or a CSV file. shares: None for the usual ones. key: a file, None for a key of the dataset's own.
    commit_interval_s: how much work a kill may cost.
    """

    sources: tuple[str, ...]
    out: Path
    labels: str | None = None
    shares: Shares | None = None
    key: Path | None = None
    workers: int = field(default_factory=available_cpus)
    read: ReadOptions = field(default_factory=ReadOptions)
    commit_interval_s: float = 2.0

    def settings(self, sources: Sequence[Source]) -> dict[str, object]:
        """What decides pixels and ids: a run can only go on with the same. Labels and splits may change."""
        return {
            "SOURCE": [str(source.path) for source in sources],
            "--frames": self.read.frames.count,
            "--size and --intensity": self.read.preprocessing.to_json(),
            "--key": Identity(read_key(self.key)).fingerprint() if self.key else "own",
        }


@dataclass(slots=True, kw_only=True)
class _Counts:
    """How many images this run decoded, and how many it found done."""

    read: int = 0
    resumed: int = 0


def prepare(options: PrepareOptions, *, console: Console | None = None, pool: DecodePool | None = None) -> Summary:
    """Make the dataset `options.out`. Raises ConfigError where a person has to correct something.

    console: where progress is shown, usually stderr. pool: whose workers read, usually one of the run's own.

    An image that cannot be read is reported and never stops the run. A name that occurs twice within a source, as
    tar and zip allow, is read once.
    """
    start = time.monotonic()
    out = absolute(options.out)
    sources = open_sources(options.sources)
    with partial_folder(out) as folder, Journal(folder.parent / "journal.sqlite") as journal:
        journal.settle(options.settings(sources))
        identity = Identity(read_key(options.key) if options.key else own_key(folder / dataset.KEY))
        labels = open_labels(options.labels, journal, identity) if options.labels else None
        with (
            nullcontext(pool) if pool else DecodePool(options.workers) as workers,
            progress("preparing", unit="files", console=console) as advance,
        ):
            counts = _read_all(options, sources, journal, identity, folder / dataset.IMAGES, workers, advance)
        by_reason = report.failures(journal)
        if not journal.rows():
            raise NothingToPrepare(report.nothing(by_reason, sources, options.sources))
        info, labelled_rows = _finish(options, journal, identity, labels, by_reason, folder)
        unmatched = labels.unmatched() if labels else 0
    publish(folder, out)
    return Summary(
        path=options.out,
        info=info,
        read=counts.read,
        resumed=counts.resumed,
        seconds=time.monotonic() - start,
        labelled_rows=labelled_rows,
        unmatched_labels=unmatched,
    )


def _read_all(
    options: PrepareOptions,
    sources: Sequence[Source],
    journal: Journal,
    identity: Identity,
    images_path: Path,
    pool: DecodePool,
    advance: Progress,
) -> _Counts:
    """Decode every item that the journal does not have yet, and record it in the order of the sources."""
    counts = _Counts()
    skip = frozenset({str(absolute(options.out)), str(absolute(options.labels or FOLDERS))})
    walk = Walk(max_bytes=options.read.limits.max_bytes, skip=skip)
    size = options.read.preprocessing.size

    def not_yet_recorded() -> Iterator[SourceItem]:
        for item in items(sources, walk):
            if journal.has(identity.image(item.locator)):
                counts.resumed += 1
                advance.skip()
            else:
                yield item

    with (
        ImagesFile(images_path, size=size, rows=journal.rows()) as images,
        _counting_ahead(sources, walk, advance),
    ):
        recorder = _Recorder(journal, images, identity, options.commit_interval_s)
        for item, reading in read_in_order(pool, not_yet_recorded(), options.read, workers=options.workers):
            counts.read += recorder.record(item, reading)
            advance()
        recorder.commit()
        images.finish()
    return counts


class _Recorder:
    """Writes readings down, in the order they come."""

    def __init__(self, journal: Journal, images: ImagesFile, identity: Identity, commit_interval_s: float) -> None:
        self._journal = journal
        self._images = images
        self._identity = identity
        self._commit_interval_s = commit_interval_s
        self._committed = time.monotonic()

    def record(self, item: SourceItem, reading: Reading | str) -> bool:
        """Record what became of an item. False where another item with its locator is recorded."""
        image_id = self._identity.image(item.locator)
        if isinstance(reading, str):
            new = self._journal.add_failure(image_id, item, reading)
        else:
            new = self._add(image_id, item, reading)
        if time.monotonic() - self._committed >= self._commit_interval_s:
            self.commit()
        return new

    def commit(self) -> None:
        """Make it permanent: the pixels first, so that the journal never tells of rows that are not there."""
        self._images.sync()
        self._journal.commit()
        self._committed = time.monotonic()

    def _add(self, image_id: str, item: SourceItem, reading: Reading) -> bool:
        image = self._journal.add_image(image_id, item, reading, self._identity.patient(reading.header.patient_id))
        if image is None:
            return False
        for plane, digest, frame in zip(reading.planes, reading.digests, reading.frame_indices, strict=True):
            kept = self._journal.kept(digest)
            self._journal.add_frame(
                image,
                self._identity.frame(item.locator, frame),
                frame=frame,
                digest=digest,
                row=None if kept else self._images.append(plane),
                duplicate_of=kept,
            )
        return True


@contextmanager
def _counting_ahead(sources: Sequence[Source], walk: Walk, advance: Progress) -> Iterator[None]:
    """Where somebody looks at a bar, count the items beside the work, so that it can tell the time left."""
    stop = threading.Event()

    def count() -> None:
        total = 0
        for _ in items(sources, Walk(skip=walk.skip, contents=False)):
            total += 1
            if stop.is_set():
                return
        advance.expect(total)

    if advance.live:
        threading.Thread(target=count, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _finish(
    options: PrepareOptions,
    journal: Journal,
    identity: Identity,
    labels: Labels | None,
    by_reason: dict[str, int],
    folder: Path,
) -> tuple[Info, int]:
    """Write everything that follows from the journal; dataset.json, which makes it a dataset, comes last."""
    shares = options.shares or (LABELLED if labels else UNLABELLED)
    tables.resolve(journal, identity, shares, labels)
    labelled_rows = tables.labelled_rows(journal)
    if labels and not labelled_rows:
        raise ConfigError(labels.missing())
    tables.write_tables(journal, folder, labelled=labels is not None)
    report.write_report(journal, folder / dataset.REPORT)
    info = Info(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        preprocessing=options.read.preprocessing,
        frames=options.read.frames,
        decoders=journal.decoders(),
        shares=shares,
        images=journal.count("SELECT COUNT(*) FROM resolved"),
        rows=journal.rows(),
        duplicates=journal.count("SELECT COUNT(*) FROM frames WHERE row IS NULL"),
        not_images=by_reason.get(NotAnImage.reason, 0),
        failures={reason: count for reason, count in by_reason.items() if reason != NotAnImage.reason},
        splits={split.value: tables.rows_of_split(journal, split) for split in Split},
        patients=journal.count("SELECT COUNT(DISTINCT patient) FROM resolved WHERE patient != ''"),
        labelled=labels is not None,
    )
    journal.commit()
    write_synced(folder / dataset.INFO, info.to_json())
    return info, labelled_rows
