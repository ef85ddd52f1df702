"""Tables on a terminal, and in a pipe, where they are as wide as they need to be."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepmcat_client.results import Assignment, Catalog, Category
from deepmcat_client.series import Series

PIPE_WIDTH = 400
TERMS_SHOWN = 3


def output() -> Console:
    """Stdout; in a pipe nothing is cut to eighty columns."""
    return Console(soft_wrap=False, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


class ImageRow(NamedTuple):
    """The cells of an image's row: a fraction of its answer, since a table waits for its last row."""

    file: str
    category: str
    cluster_id: int
    distance: float
    p_value: float | None
    outlier: bool | None

    @classmethod
    def of(cls, file: Path, a: Assignment) -> ImageRow:
        """The row of a file and its assignment."""
        return cls(str(file), _nearest_where_unknown(a), a.cluster_id, a.distance, a.p_value, a.outlier)


def image_table(rows: Iterable[ImageRow]) -> Table:
    """One row an image."""
    table = _table(["file", "category"], ["cluster", "distance", "p", "outlier"])
    for row in rows:
        table.add_row(
            Text(row.file),
            Text(row.category, style="yellow" if row.outlier else ""),
            str(row.cluster_id),
            f"{row.distance:.3f}",
            number(row.p_value),
            {True: "yes", False: "no", None: "–"}[row.outlier],
        )
    return table


def series_table(rows: Sequence[Series]) -> Table:
    """One row a series, which has a number here and never its UID."""
    table = _table(["series", "folder"], ["images"], ["category"], ["share", "distance", "p", "outliers"])
    for row in rows:
        table.add_row(
            str(row.number),
            Text(str(row.folder)),
            str(row.images),
            Text(row.category),
            f"{row.share:.0%}",
            f"{row.distance:.3f}",
            number(row.p_value),
            str(row.outliers),
        )
    return table


def category_table(catalog: Catalog) -> Table:
    """One row a category in use."""
    table = _table(["category", "id", "status"], ["images", "clusters"], ["terms"])
    for category in catalog.categories:
        if category.status != "retired":
            table.add_row(
                Text(category.name),
                category.category_id,
                category.status,
                str(category.fit_images),
                str(len(category.cluster_ids)),
                Text(terms(category)),
            )
    return table


def terms(category: Category) -> str:
    """The coded terms that a category's training images have most in common."""
    return ", ".join(f"{t.value} {t.share:.0%}" for t in category.terms[:TERMS_SHOWN])


def number(p_value: float | None) -> str:
    """A p-value, or a dash where there is no verdict."""
    return "–" if p_value is None else f"{p_value:.3f}"


def _nearest_where_unknown(a: Assignment) -> str:
    if a.outlier and a.candidates:
        return f"{a.category} (nearest: {a.candidates[0].category})"
    return a.category


def _table(*columns: Sequence[str]) -> Table:
    """A plain table; columns come in groups of text and of numbers, text first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, names in enumerate(columns):
        for name in names:
            table.add_column(name, justify="right" if position % 2 else "left", overflow="fold")
    return table
