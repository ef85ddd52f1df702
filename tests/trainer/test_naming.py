"""Suggested names: what they come from and what they may never be."""

from __future__ import annotations

import numpy as np
import pytest

from deepmcat_trainer.naming import suggest


def names(columns, groups):
    groups = np.asarray(groups)
    return [s.name for s in suggest(columns, groups, int(groups.max()) + 1)]


def test_a_name_is_what_most_images_share():
    """Modality, body part and plane of the majority, in this order."""
    columns = {
        "Plane": ["axial"] * 4 + ["sagittal"] * 4,
        "Modality": ["CT"] * 4 + ["MR"] * 4,
        "BodyPartExamined": ["CHEST", "CHEST", "CHEST", None, "KNEE", "ELBOW", "HEAD", "NECK"],
    }
    assert names(columns, [0] * 4 + [1] * 4) == ["CT CHEST axial", "MR sagittal"]


def test_equal_names_are_told_apart_by_what_is_distinctive():
    """Two MR groups get the shared description that sets each apart."""
    columns = {"Modality": ["MR"] * 8, "description": ["t1 tse"] * 4 + ["t2 flair"] * 4}
    assert names(columns, [0] * 4 + [1] * 4) == ["MR t1 tse", "MR t2 flair"]


def test_what_cannot_be_told_apart_gets_a_number():
    """Names are unique; the largest group keeps the plain one."""
    assert names({"Modality": ["CT"] * 6}, [0, 0, 0, 1, 1, 2]) == ["CT", "CT 2", "CT 3"]


def test_a_number_does_not_collide_with_a_name():
    """A numbered name moves on where a header already says so."""
    columns = {"Modality": ["CT 2", "CT", "CT"]}
    assert names(columns, [0, 1, 2]) == ["CT 2", "CT", "CT 3"]


@pytest.mark.parametrize("columns", [{}, {"Modality": [None, "", None]}, {"Station": ["a", "b", "c"]}])
def test_without_headers_categories_are_numbered(columns):
    """No header, no column or an unknown column: "Category 1" and so on."""
    assert names(columns, [0, 0, 1]) == ["Category 1", "Category 2"]


def test_the_reserved_name_is_never_suggested():
    """A header that says "unknown" does not make the outliers' name."""
    assert names({"Modality": ["UNKNOWN", "unknown"]}, [0, 1]) == ["UNKNOWN 2", "unknown 3"]


def test_control_characters_do_not_reach_a_terminal():
    """Escape sequences and line breaks of a header become spaces."""
    assert names({"Modality": ["\x1b[31mMR\n\tcine"]}, [0]) == ["[31mMR cine"]


def test_terms_have_the_share_of_images_that_have_them():
    """Terms list attribute, value and share, the most frequent first, the rare ones not."""
    columns = {"Modality": ["CT"] * 30 + ["MR"], "BodyPartExamined": ["CHEST"] * 15 + [None] * 16}
    (suggestion,) = suggest(columns, np.zeros(31, dtype=np.int64), 1)
    assert [(t.attribute, t.value) for t in suggestion.terms] == [("Modality", "CT"), ("BodyPartExamined", "CHEST")]
    assert suggestion.terms[0].share == pytest.approx(30 / 31, abs=1e-4)


def test_an_empty_group_is_named_too():
    """A group without images, which merging people can leave, does not divide by zero."""
    assert [s.name for s in suggest({"Modality": ["CT"]}, np.array([0]), 2)] == ["CT", "Category 2"]
