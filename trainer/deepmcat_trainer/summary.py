"""What a person reads when an artifact is done: its categories, what its verdicts are worth, where it is."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepmcat_core.catalog import Category
from deepmcat_trainer.finish import Finished
from deepmcat_trainer.lineage import Change, Succession

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
        f"{len(categories)} {'category' if len(categories) == 1 else 'categories'} from {finished.fine_k} fine "
        f"clusters ({finished.linkage} linkage, "
        f"suggested cut {finished.suggested_k}). Suggestions, not findings: name and merge them with "
        "deepmcat names export.",
    )
    if finished.succession is not None:
        _print_succession(finished.succession, [c.name for c in categories], console)
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


def _print_succession(succession: Succession, names: list[str], console: Console) -> None:
    """What became of the categories of the artifact before. names: of the new ones."""
    rows = _changes(succession, names)
    table = Table(box=None, pad_edge=False)
    for heading in ("previous category", "change", "now", "Jaccard", "images"):
        table.add_column(heading, justify="right" if heading in ("Jaccard", "images") else "left", overflow="fold")
    for row in rows[:ROWS]:
        table.add_row(*map(Text, row))
    console.print(table)
    if len(rows) > ROWS:
        _say(console, f"… and {len(rows) - ROWS} more: `training` in manifest.json has them all")
    fates = Counter(succession.fate(a) for a in range(len(succession.old)))
    origins = Counter(succession.origin(g) for g in range(len(names)))
    _say(console, f"previous artifact {succession.previous.artifact_id[:12]}: {_counted(fates, Change.NEW)}")
    _say(console, f"categories now: {_counted(origins, Change.RETIRED)}")
    images, living = len(succession.previous.held), succession.living_on
    _say(
        console,
        f"{living:,} of {images:,} images ({living / images:.1%}) were in categories that are kept; "
        f"{succession.keeping_id / max(1, living):.2%} of them keep their id. "
        f"{succession.outliers.sum():,} were outliers to the previous artifact.",
    )


def _changes(succession: Succession, names: list[str]) -> list[tuple[str, ...]]:
    """A row per previous category, those that are not kept first; then the new ones."""
    jaccard, held = succession.jaccard, succession.held
    order = sorted(range(len(held)), key=lambda a: (succession.fate(a) is Change.KEPT, -held[a]))
    rows: list[tuple[str, ...]] = []
    for a in order:
        shares = [(g, succession.overlap[a, g] / held[a]) for g in succession.successors(a)]
        now = ", ".join(f"{names[g]} {share:.0%}" for g, share in shares)
        row = succession.old[a].name, succession.fate(a).value, now, f"{jaccard[a].max():.3f}", f"{held[a]:,}"
        rows.append(row)
    new = [g for g in range(len(names)) if succession.origin(g) is Change.NEW]
    return rows + [("", Change.NEW.value, names[g], "", f"{succession.sizes[g]:,}") for g in new]


def _counted(changes: Counter[Change], never: Change) -> str:
    return ", ".join(f"{changes[change]} {change.value}" for change in Change if change is not never)


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
