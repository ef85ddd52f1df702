"""`deepmcat categorize`: what are these images?"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepmcat_client.allocation import keep_freed
from deepmcat_client.client import Client
from deepmcat_client.commands.connecting import (
    CaOption,
    CertOption,
    KeyOption,
    Reach,
    ServerNameOption,
    ServerOption,
    TlsOption,
    TokenOption,
    reach,
)
from deepmcat_client.commands.progress import image_progress
from deepmcat_client.commands.tables import ImageRow, image_table, output, series_table
from deepmcat_client.errors import ClientError, InvalidRequest, NotAnImage, RequestError
from deepmcat_client.files import find_files
from deepmcat_client.journal import Journal, answer_line, pinned_artifact
from deepmcat_client.local import LocalCategorizer
from deepmcat_client.requests import Options
from deepmcat_client.results import Categorization
from deepmcat_client.series import SeriesTable, series_reader

Answer = Categorization | ClientError

SOME_FAILED = 1


class By(StrEnum):
    """What gets one row."""

    IMAGE = "image"
    SERIES = "series"


def command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files, and folders with all that is in them.")
    ],
    server: ServerOption = "",
    artifact: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask no server: answer here, with this artifact.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append JSON lines to this file. Files that have a line there are not asked for again."
        ),
    ] = None,
    mixed_artifacts: Annotated[
        bool, typer.Option("--mixed-artifacts", help="Let --out hold answers of more than one artifact.")
    ] = False,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="One JSON object a line, as answers come: for large folders. A table waits for the last."
        ),
    ] = False,
    by: Annotated[By, typer.Option(help="One row an image, or one a series (its images vote).")] = By.IMAGE,
    top_k: Annotated[int, typer.Option(help="How many of the nearest categories to give as candidates.", min=1)] = 3,
    frames: Annotated[
        int, typer.Option(help="How many frames of a multi-frame image to use; 0: as the artifact does.", min=0)
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds an image may take.", min=0.001)] = 30.0,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_server_name: ServerNameOption = "",
    token_file: TokenOption = None,
) -> None:
    """Say what images are. Exit code 1 where an image failed; a report or a plan is no image and no failure.

    Nothing of a file but its content is sent: no name, no path. For organising archives and research, never diagnosis.
    """
    keep_freed()
    if bool(server) == (artifact is not None):
        raise InvalidRequest("give either --server HOST:PORT or --artifact DIR")
    if out is not None and (jsonl or by is By.SERIES):
        raise InvalidRequest(
            "--out writes one JSON line an image; leave out " + ("--jsonl" if jsonl else "--by series")
        )
    find_files(paths)  # raises for what is not there, before anything else is done
    secured = reach(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name, token_file=token_file)
    run = _Run(
        paths=paths,
        options=Options(frames=frames, top_k=top_k),
        series=SeriesTable(series_reader()) if by is By.SERIES else None,
        jsonl=jsonl,
    )
    with (
        Journal(out) if out is not None else nullcontext() as journal,
        _opened(server, artifact, timeout, secured) as categorizer,
    ):
        run.answer(categorizer, journal, mixed=mixed_artifacts)
    if run.failed:
        raise typer.Exit(SOME_FAILED)


def _opened(server: str, artifact: Path | None, timeout_s: float, secured: Reach) -> AbstractContextManager[Any]:
    if artifact is not None:
        return LocalCategorizer(artifact)
    return Client(server, timeout_s=timeout_s, tls=secured.tls, token=secured.token)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One pass over the files. failed: whether an image has no answer, or an error for one."""

    paths: list[Path]
    options: Options
    series: SeriesTable | None
    jsonl: bool
    failed: bool = False

    def answer(self, categorizer: Any, journal: Journal | None, *, mixed: bool) -> None:
        """Ask for everything that the journal does not have, and show or write what comes."""
        options = self.options
        if journal is not None:
            pin = pinned_artifact(journal, categorizer.get_artifact().artifact.artifact_id, mixed=mixed)
            options = replace(options, artifact_id=pin)
        todo = self._files if journal is None else partial(self._unanswered, journal)
        report = _Report(jsonl=self.jsonl, series=self.series, journal=journal)
        try:
            with image_progress(todo, shown=not (self.jsonl and sys.stdout.isatty())) as advance:
                for file, answer in categorizer.categorize_stream(((file, file) for file in todo()), options):
                    report.add(file, answer)
                    advance()
        except ClientError:
            present = find_files([path for path in self.paths if path.exists()])
            report.not_answered = max(0, sum(1 for _ in present) - report.seen - report.before)
            raise
        finally:
            report.finish()
        if not report.seen and not report.before:
            raise InvalidRequest(f"there is no file in {', '.join(map(str, self.paths))}")
        self.failed = bool(report.failures or (journal is not None and journal.answered.failed))

    def _files(self) -> Iterator[Path]:
        return find_files(self.paths)

    def _unanswered(self, journal: Journal) -> Iterator[Path]:
        """The files without a line, each once however often it is named, and not the journal itself."""
        own = journal.path.resolve()
        seen: set[Path] = set()
        for file in self._files():
            if file not in seen and file not in journal and (file.name != own.name or file.resolve() != own):
                seen.add(file)
                yield file


class _Report:
    """Shows answers as they come (JSON lines) or all at the end (tables), or writes them to a journal, and counts.

    before: lines that the journal had.
    """

    def __init__(self, *, jsonl: bool, series: SeriesTable | None, journal: Journal | None = None) -> None:
        self._jsonl = jsonl
        self._series = series
        self._journal = journal
        self.before = 0 if journal is None else len(journal.answered.files)
        self._rows: list[ImageRow] = []
        self._others: list[str] = []
        self.seen = self.answered = self.not_images = self.not_answered = 0
        self.failures: Counter[str] = Counter()

    def add(self, file: Path, answer: Answer) -> None:
        """Take one answer. Raises an error that every other image of the run would have, where there is a journal."""
        if self._journal is not None and isinstance(answer, RequestError):
            raise answer
        self.seen += 1
        if isinstance(answer, Categorization):
            self.answered += 1
        elif isinstance(answer, NotAnImage):
            self.not_images += 1
        else:
            self.failures[answer.reason] += 1
        if self._journal is not None and self._journal.add(file, answer):
            return
        if self._jsonl and (self._series is None or isinstance(answer, ClientError)):
            print(json.dumps(answer_line(file, answer), ensure_ascii=False), flush=True)  # noqa: T201 - the answer itself
        elif isinstance(answer, ClientError):
            kind = "not an image" if isinstance(answer, NotAnImage) else "failed"
            self._others.append(f"{kind}: {file}: {answer.reason}: {answer}")
        elif self._series is not None:
            self._series.add(file, answer.assignment)
        else:
            self._rows.append(ImageRow.of(file, answer.assignment))

    def finish(self) -> None:
        """Show what there is, in a table on stdout; failures and counts on stderr."""
        if self._series is not None and self._jsonl:
            for row in self._series.rows():
                print(json.dumps(asdict(row) | {"folder": str(row.folder)}, ensure_ascii=False))  # noqa: T201
        elif self._series is not None and self.answered:
            output().print(series_table(self._series.rows()))
        elif self._rows:
            output().print(image_table(self._rows))
        notes = Console(stderr=True, soft_wrap=True, highlight=False)
        for line in self._others:
            notes.print(line, markup=False)
        if self.seen or self.not_answered or self.before:
            notes.print(self._summary(), markup=False)

    def _summary(self) -> str:
        failed = ", ".join(f"{count} {reason}" for reason, count in self.failures.most_common())
        parts = [f"{self.answered} images categorized"]
        parts += [f"{self.before} lines were there before"] if self.before else []
        parts += [f"{self.not_images} not images"] if self.not_images else []
        parts += [f"{self.failures.total()} failed ({failed})"] if failed else []
        parts += [f"{self.not_answered} not answered"] if self.not_answered else []
        if self._journal is not None and self._others:
            parts += [f"{len(self._others)} of these have no line in {self._journal.path}: run it again"]
        return ", ".join(parts)
