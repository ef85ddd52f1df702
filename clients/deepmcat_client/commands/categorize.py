"""`deepmcat categorize`: what are these images?"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepmcat_client.client import Client
from deepmcat_client.commands.progress import image_progress
from deepmcat_client.commands.tables import ImageRow, image_table, output, series_table
from deepmcat_client.errors import ClientError, InvalidRequest, NotAnImage
from deepmcat_client.files import find_files
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
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server to ask.")] = "",
    artifact: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask no server: answer here, with this artifact.")
    ] = None,
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
) -> None:
    """Say what images are. Exit code 1 where an image failed; a report or a plan is no image and no failure.

    Nothing of a file but its content is sent: no name, no path. For organising archives and research, never diagnosis.
    """
    if bool(server) == (artifact is not None):
        raise InvalidRequest("give either --server HOST:PORT or --artifact DIR")
    files = find_files(paths)
    series = SeriesTable(series_reader()) if by is By.SERIES else None
    report = _Report(jsonl=jsonl, series=series)
    try:
        shown = not (jsonl and sys.stdout.isatty())
        with (
            _opened(server, artifact, timeout) as categorizer,
            image_progress(lambda: find_files(paths), shown=shown) as advance,
        ):
            items = ((file, file) for file in files)
            for file, answer in categorizer.categorize_stream(items, Options(frames=frames, top_k=top_k)):
                report.add(file, answer)
                advance()
    except ClientError:
        present = find_files([path for path in paths if path.exists()])
        report.not_answered = max(0, sum(1 for _ in present) - report.seen)
        raise
    finally:
        report.finish()
    if not report.seen:
        raise InvalidRequest(f"there is no file in {', '.join(map(str, paths))}")
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _opened(server: str, artifact: Path | None, timeout_s: float) -> AbstractContextManager[Any]:
    return LocalCategorizer(artifact) if artifact is not None else Client(server, timeout_s=timeout_s)


class _Report:
    """Shows answers as they come (JSON lines) or all at the end (tables), and counts."""

    def __init__(self, *, jsonl: bool, series: SeriesTable | None) -> None:
        self._jsonl = jsonl
        self._series = series
        self._rows: list[ImageRow] = []
        self._others: list[str] = []
        self.seen = self.answered = self.not_images = self.not_answered = 0
        self.failures: Counter[str] = Counter()

    def add(self, file: Path, answer: Answer) -> None:
        """Take one answer."""
        self.seen += 1
        if isinstance(answer, Categorization):
            self.answered += 1
        elif isinstance(answer, NotAnImage):
            self.not_images += 1
        else:
            self.failures[answer.reason] += 1
        if self._jsonl and (self._series is None or isinstance(answer, ClientError)):
            print(json.dumps(_line(file, answer), ensure_ascii=False), flush=True)  # noqa: T201 - the answer itself
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
        if self.seen or self.not_answered:
            notes.print(self._summary(), markup=False)

    def _summary(self) -> str:
        failed = ", ".join(f"{count} {reason}" for reason, count in self.failures.most_common())
        parts = [f"{self.answered} images categorized"]
        parts += [f"{self.not_images} not images"] if self.not_images else []
        parts += [f"{self.failures.total()} failed ({failed})"] if failed else []
        parts += [f"{self.not_answered} not answered"] if self.not_answered else []
        return ", ".join(parts)


def _line(file: Path, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, ClientError):
        return {"file": str(file), "error": {"reason": answer.reason, "message": str(answer)}}
    fields = asdict(answer)
    del fields["embedding"]
    return {"file": str(file), **fields}
