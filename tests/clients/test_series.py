"""How the images of a series vote."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepmcat_client.results import Assignment, Candidate
from deepmcat_client.series import SeriesTable, decide


def image(category: str, p_value: float | None, *, outlier: bool | None = False, distance: float = 0.1) -> Assignment:
    """An image nearest to a category."""
    return Assignment(
        category_id="unknown" if outlier else f"id {category}",
        category="unknown" if outlier else category,
        cluster_id=0,
        distance=distance,
        p_value=p_value,
        outlier=None if p_value is None else outlier,
        candidates=(Candidate(category_id=f"id {category}", category=category, cluster_id=0, distance=distance),),
    )


def test_votes_are_weighted_by_p() -> None:
    """One usual image outweighs two unusual ones."""
    row = decide(1, Path("x"), [image("CT", 0.9), image("MR", 0.2), image("MR", 0.3)])

    assert (row.category_id, row.category) == ("id CT", "CT")
    assert row.share == pytest.approx(0.9 / 1.4)
    assert row.p_value == pytest.approx(0.6)


def test_without_p_every_image_has_one_vote() -> None:
    """An artifact without verdicts: the majority, and no p."""
    row = decide(1, Path("x"), [image("CT", None), image("MR", None), image("MR", None)])

    assert (row.category, row.p_value, row.outliers) == ("MR", None, 0)


def test_a_series_of_outliers_is_unknown() -> None:
    """Where most images are unknown the series is; one outlier among many changes nothing."""
    strange, usual = image("CT", 0.001, outlier=True), image("CT", 0.5)

    assert decide(1, Path("x"), [strange, strange, usual]).category == "unknown"
    assert decide(1, Path("x"), [strange, usual, usual]).category == "CT"
    assert decide(1, Path("x"), [strange, usual, usual]).outliers == 1


def test_series_are_numbered_in_order() -> None:
    """A number stands for what tells them apart, and the folder is that of the first image."""
    table = SeriesTable(lambda file: ("uid", file.name))
    for path in ("one/a", "one/b", "two/a"):
        table.add(Path(path), image("CT", 0.5))

    rows = [(row.number, str(row.folder), row.images) for row in table.rows()]
    assert rows == [(1, "one", 2), (2, "one", 1)]
