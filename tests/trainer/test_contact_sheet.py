"""Contact sheets: which images they show, and files that any system takes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deepmcat_core.catalog import Catalog, Category, CategoryStatus
from deepmcat_trainer.contact_sheet import COLUMNS, choose, draw, file_name, write_sheets


def catalog():
    return Catalog(
        version=1,
        k=3,
        categories=(
            Category(id="c-1", name="CT", clusters=(0,)),
            Category(id="c-2", name="MR", clusters=(1, 2)),
            Category(id="c-3", name="old", clusters=(), status=CategoryStatus.RETIRED),
        ),
    )


def test_a_sheet_shows_the_nearest_some_between_and_the_farthest():
    """Of 100 images: the first eight by distance, eight spread over the middle, the last eight."""
    (sheet, empty) = choose(catalog(), np.zeros(100, np.int64), np.linspace(1, 0, 100).astype(np.float32))
    nearest, between, farthest = (list(row) for row in sheet.rows)
    assert nearest == list(range(99, 91, -1))
    assert farthest == list(range(7, -1, -1))
    assert (len(between), between[0], between[-1]) == (COLUMNS, 91, 8)
    assert empty.images == 0


@pytest.mark.parametrize("n", [1, 3, 8, 9, 16, 17, 24, 30])
def test_no_image_is_shown_twice(n):
    """Small categories show what they have."""
    sheet = choose(catalog(), np.full(n, 2), np.arange(n, dtype=np.float32))[0]
    shown = np.concatenate(sheet.rows)
    assert len(set(shown)) == len(shown) == min(n, 3 * COLUMNS)


def test_images_go_to_the_category_of_their_cluster_the_largest_first():
    """Clusters 1 and 2 are one category; retired categories have no sheet."""
    sheets = choose(catalog(), np.array([0, 1, 2, 2]), np.zeros(4, np.float32))
    assert [(s.category.name, s.images) for s in sheets] == [("MR", 3), ("CT", 1)]


def test_pages_are_written_for_categories_with_images(tmp_path):
    """A PNG each, whose pixels come from the rows that the indices name."""
    images = np.zeros((10, 16, 16), np.uint8)
    images[7] = 200
    sheets = choose(catalog(), np.array([0]), np.zeros(1, np.float32))
    (path,) = write_sheets(sheets, images, np.array([7]), tmp_path)
    assert path.name == "01-ct-c-1.png"
    with Image.open(path) as page:
        assert 200 in np.unique(np.asarray(page))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CT CHEST axial", "02-ct-chest-axial-c-1.png"),
        ("../../etc\x00/passwd", "02-etc-passwd-c-1.png"),
        ("頭部", "02-c-1.png"),
    ],
)
def test_file_names_are_safe(name, expected):
    """Whatever people call a category, its file stays in the folder."""
    assert file_name(2, Category(id="c-1", name=name, clusters=(0,))) == expected


def test_any_name_can_be_a_caption():
    """A name in another script is drawn, if only as boxes."""
    sheet = choose(catalog(), np.array([0]), np.zeros(1, np.float32))[0]
    named = type(sheet)(category=Category(id="c-1", name="頭部 é", clusters=(0,)), images=1, rows=sheet.rows)
    assert draw(named, [[np.zeros((16, 16), np.uint8)], [], []]).width > 8 * 128
