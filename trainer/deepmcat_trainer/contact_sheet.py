"""Contact sheets: a page of images a category, for people who name it. These are patient images.

the nearest to their centroid        what the category is
evenly spaced over the distances     what is in it
the farthest                         where it frays
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from deepmcat_core.catalog import Catalog, Category

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Plane = npt.NDArray[np.uint8]

COLUMNS = 8
CELL, GAP, MARGIN = 128, 4, 12
TITLE, CAPTION = 18, 13  # font sizes
PAPER, INK, FAINT = 255, 0, 96
ROWS = ("nearest to the centroid", "in between", "farthest from the centroid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The images of one category to show, by rows of ROWS: indices into whatever was assigned."""

    category: Category
    images: int
    rows: tuple[Ints, ...]


def choose(catalog: Catalog, clusters: Ints, distances: Floats) -> list[Sheet]:
    """A sheet per active category, the largest first; from the nearest cluster and distance of each image, (N,)."""
    position = {category.id: i for i, category in enumerate(catalog.active)}
    category_of = np.asarray([position[c.id] for c in catalog.by_cluster])[clusters]
    sheets = []
    for i, category in enumerate(catalog.active):
        members = np.flatnonzero(category_of == i)
        ranked = members[np.argsort(distances[members], kind="stable")]
        sheets.append(Sheet(category=category, images=len(members), rows=_rows(ranked)))
    return sorted(sheets, key=lambda sheet: -sheet.images)


def draw(sheet: Sheet, planes: Sequence[Sequence[Plane]]) -> Image.Image:
    """The page of a sheet. planes: the images (S, S) uint8 of each row of `sheet.rows`."""
    shown = [(caption, row) for caption, row in zip(ROWS, planes, strict=True) if row]
    step = CAPTION + 2 * GAP + CELL
    width = 2 * MARGIN + COLUMNS * (CELL + GAP) - GAP
    page = Image.new("L", (width, 2 * MARGIN + TITLE + CAPTION + 2 * GAP + len(shown) * step), PAPER)
    pen = ImageDraw.Draw(page)
    _write(pen, (MARGIN, MARGIN), sheet.category.name, TITLE, INK)
    about = f"{sheet.images} images, {len(sheet.category.clusters)} fine clusters, {sheet.category.id}"
    _write(pen, (MARGIN, MARGIN + TITLE + GAP), about, CAPTION, FAINT)
    top = MARGIN + TITLE + CAPTION + 2 * GAP
    for caption, row in shown:
        _write(pen, (MARGIN, top), caption, CAPTION, FAINT)
        for column, plane in enumerate(row):
            cell = Image.fromarray(plane).resize((CELL, CELL), Image.Resampling.BILINEAR)
            page.paste(cell, (MARGIN + column * (CELL + GAP), top + CAPTION + GAP))
        top += step
    return page


def file_name(rank: int, category: Category) -> str:
    """A name that any file system takes: the rank by size, what is plain in the category's name, and its id."""
    plain = re.sub(r"[^a-z0-9]+", "-", category.name.lower()).strip("-")[:40]
    return "-".join(filter(None, [f"{rank:02d}", plain, category.id])) + ".png"


def write_sheets(sheets: Sequence[Sheet], images: npt.NDArray[np.uint8], indices: Ints, folder: Path) -> list[Path]:
    """Write a PNG per sheet that has images. images: (N, S, S), memory-mapped; indices: where assigned image i is."""
    paths = []
    for rank, sheet in enumerate((s for s in sheets if s.images), start=1):
        planes = [[np.asarray(images[indices[i]]) for i in row] for row in sheet.rows]
        path = folder / file_name(rank, sheet.category)
        draw(sheet, planes).save(path)
        paths.append(path)
    return paths


def _rows(ranked: Ints) -> tuple[Ints, ...]:
    """The nearest, some in between, and the farthest of images ranked by distance; none twice."""
    if len(ranked) <= COLUMNS:
        return ranked, ranked[:0], ranked[:0]
    nearest, rest = ranked[:COLUMNS], ranked[COLUMNS:]
    farthest = rest[-COLUMNS:]
    between = rest[: len(rest) - len(farthest)]
    spread = np.linspace(0, len(between) - 1, min(COLUMNS, len(between))).astype(np.int64)
    return nearest, between[spread], farthest


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: int) -> None:
    pen.text(at, text, fill=ink, font=ImageFont.load_default(size))
