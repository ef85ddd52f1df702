"""What a person reads when an artifact is done: its categories, what its verdicts are worth, where it is."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepmcat_core.catalog import Category
from deepmcat_trainer.finish import Finished

ROWS = 30
TERMS = 3


def print_summary(finished: Finished, console: Console) -> None:
    """Print the categories, the largest first, and the sentences about them."""
    categories = finished.catalog.active
    console.print(_table(categories[:ROWS], sum(c.fit_images for c in categories)))
    if len(categories) > ROWS:
        _say(console, f"… and {len(categories) - ROWS} more: deepmcat describe {finished.path}")
    _say(
        console,
        f"{len(categories)} categories from {finished.fine_k} fine clusters ({finished.linkage} linkage, "
        f"suggested cut {finished.suggested_k}). Suggestions, not findings: name and merge them with "
        "deepmcat names export.",
    )
    _say(console, finished.calibration.note())
    _say(console, f"artifact {finished.artifact_id[:12]} in {finished.path}")


def _table(categories: tuple[Category, ...], total: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("category", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("share", justify="right")
    table.add_column("terms" if any(c.terms for c in categories) else "", overflow="fold")
    total = max(1, total)
    for c in categories:
        terms = ", ".join(f"{t.value} {t.share:.0%}" for t in c.terms[:TERMS])
        table.add_row(Text(c.name), f"{c.fit_images:,}", f"{c.fit_images / total:.1%}", Text(terms))
    return table


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
