"""One answer for a series: its images vote."""

from __future__ import annotations

import importlib
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deepmcat_client.errors import MissingExtra
from deepmcat_client.results import Assignment

UNKNOWN = "unknown"

SeriesKey = tuple[str, str]
"""What tells series apart: ("uid", SeriesInstanceUID), or ("folder", path) for files that have none. Never shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The answer for one series. number: from 1, in the order in which the series were met; it stands for the UID.

    share: of the votes that the category won. p_value: twice the median of the images' p-values, at most 1 (valid
    however the images depend on each other: Rüger 1978; Vovk and Wang 2020). distance: the median.
    """

    number: int
    folder: Path
    images: int
    category_id: str
    category: str
    share: float
    distance: float
    p_value: float | None
    outliers: int


@dataclass(slots=True)
class _Votes:
    folder: Path
    assignments: list[Assignment] = field(default_factory=list)


class SeriesTable:
    """Collects images by series. `key_of` tells which series a file belongs to."""

    def __init__(self, key_of: Callable[[Path], SeriesKey]) -> None:
        self._key_of = key_of
        self._votes: dict[SeriesKey, _Votes] = {}

    def add(self, file: Path, assignment: Assignment) -> None:
        """Count an image's vote; of its candidates the nearest is kept, which is the one it votes for."""
        votes = self._votes.setdefault(self._key_of(file), _Votes(file.parent))
        votes.assignments.append(replace(assignment, candidates=assignment.candidates[:1]))

    def rows(self) -> list[Series]:
        """One row a series."""
        return [
            decide(number, votes.folder, votes.assignments)
            for number, votes in enumerate(self._votes.values(), start=1)
        ]


def decide(number: int, folder: Path, assignments: Iterable[Assignment]) -> Series:
    """The answer for the images of a series: votes for the nearest category, weighted by p (by 1 where there is none).

    A series is unknown where most of its images are.
    """
    images = list(assignments)
    votes: dict[tuple[str, str], float] = defaultdict(float)
    for image in images:
        votes[_nearest(image)] += 1.0 if image.p_value is None else image.p_value
    category_id, category = winner = max(votes, key=lambda name: votes[name])
    won = votes[winner]
    outliers = sum(image.outlier is True for image in images)
    if 2 * outliers > len(images):
        category_id = category = UNKNOWN
    p_values = [image.p_value for image in images if image.p_value is not None]
    return Series(
        number=number,
        folder=folder,
        images=len(images),
        category_id=category_id,
        category=category,
        share=won / (sum(votes.values()) or 1),
        distance=statistics.median(image.distance for image in images),
        p_value=min(1.0, 2 * statistics.median(p_values)) if p_values else None,
        outliers=outliers,
    )


def _nearest(assignment: Assignment) -> tuple[str, str]:
    """The category nearest to an image, also where the image is an outlier of it."""
    if assignment.candidates:
        return assignment.candidates[0].category_id, assignment.candidates[0].category
    return assignment.category_id, assignment.category


def series_reader() -> Callable[[Path], SeriesKey]:
    """What reads a file's SeriesInstanceUID, with pydicom. Raises MissingExtra."""
    try:
        pydicom = importlib.import_module("pydicom")
    except ModuleNotFoundError as error:
        raise MissingExtra("pydicom", "dicom") from error
    return lambda file: _series_key(pydicom, file)


def _series_key(pydicom: Any, file: Path) -> SeriesKey:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            uid = str(header.get("SeriesInstanceUID", ""))
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on odd headers; such a file goes with its folder
        uid = ""
    return ("uid", uid) if uid else ("folder", str(file.parent))
