"""Promises about generated files, whole and damaged, and about every file that fuzzing has found."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest

from . import damage
from .elements import elements
from .hazards import HAZARDS, SEEDS
from .objects import SYNTAXES
from .promises import REASONS
from .specimens import ORIGINALS, broken, whole

REGRESSIONS = Path(__file__).parent / "regressions"
FOUND = list(csv.DictReader((REGRESSIONS / "regressions.csv").read_text().splitlines()))


def test_every_kind_of_file_is_an_image(inspector):
    """Before anything is damaged there is nothing to complain of: every syntax, every kind of pixels, every format."""
    outcomes = {specimen.kind: inspector.check(specimen.build()) for specimen in whole()}

    assert {kind: outcome for kind, outcome in outcomes.items() if outcome} == {}
    assert all(any(kind.startswith(f"{syntax.keyword}, ") for kind in ORIGINALS) for syntax in SYNTAXES)


def test_no_damage_breaks_a_promise(inspector):
    """Every kind of damage is answered with an image or one of our errors, and both occur."""
    outcomes = Counter(inspector.check(specimen.build()) for specimen in broken())

    assert outcomes[""] > 20
    assert outcomes["CORRUPT_IMAGE"] > 50
    assert set(outcomes) <= {"", *REASONS}


@pytest.mark.parametrize("row", FOUND, ids=[row["file"] for row in FOUND])
def test_what_fuzzing_found_stays_mended(row, inspector):
    """Each file that once broke a promise gets the answer that it deserves."""
    assert inspector.check((REGRESSIONS / row["file"]).read_bytes()) == row["reason"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hazard", HAZARDS)
def test_what_once_hurt_is_answered(hazard, seed, inspector):
    """Within the time and memory of any other file, and with the answer that it deserves."""
    make, reason = HAZARDS[hazard]

    assert inspector.check(make(seed)) == reason


def test_every_regression_is_listed():
    """No file lies about without saying what it is for, and none is large."""
    files = {path.name: path.stat().st_size for path in REGRESSIONS.iterdir() if path.suffix != ".csv"}

    assert set(files) == {row["file"] for row in FOUND}
    assert max(files.values()) < 4096


@pytest.mark.parametrize("kind", ["JPEGBaseline8Bit, frames", "RLELossless, RGB"])
def test_what_ends_anywhere_can_be_damaged(kind):
    """Also within a header, or right after one: fuzzing must not end over its own tools."""
    file = ORIGINALS[kind](0)
    ends = {element.value + more for element in elements(file)[-6:] for more in (-6, 0, 1, 5)}

    for end, name, seed in itertools.product(ends, damage.ALL, range(2)):
        assert isinstance(damage.damaged(file[:end], [(name, seed)]), bytes)


def test_the_corpus_is_the_same_every_time():
    """A file that somebody describes by kind, seed and damage is the file that somebody else gets."""
    assert [specimen.build() for specimen in broken()] == [specimen.build() for specimen in broken()]
    assert [make(1) for make, _ in HAZARDS.values()] == [make(1) for make, _ in HAZARDS.values()]
