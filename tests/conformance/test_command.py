"""Promises of the conformance command: what it finds, what it lets pass, and what it says of it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance import __main__ as command
from tests.conformance import cases, golden
from tests.conformance.answers import COLUMNS, Answer, answer, decodes, refused, thumbnails, without_versions

from deepmcat_core.errors import CorruptImage, NotAnImage

GREY = "80" * 64


def row(**columns: str) -> dict[str, str]:
    """A row of the table."""
    return dict.fromkeys(COLUMNS, "") | {"status": "image", "thumbnail": GREY} | columns


def test_differences_name_file_column_before_and_after():
    """What a person reads in CI."""
    before = {"a": row(digest="1", reason="CORRUPT_IMAGE"), "gone": row()}
    after = {"a": row(digest="1", reason="IMAGE_TOO_LARGE"), "new": row(status="refused", reason="CORRUPT_IMAGE")}

    assert [str(difference) for difference in golden.differences(before, after)] == [
        "gone: recorded → (nothing)",
        "a: reason: CORRUPT_IMAGE → IMAGE_TOO_LARGE",
        "new: (nothing) → CORRUPT_IMAGE",
    ]
    assert golden.differences(before, before) == []


def test_an_image_that_becomes_none_is_said_to_be_so_and_no_more():
    """That it has no decoder, frames and pixels any more goes without saying."""
    before, after = {"a": row(decoder="pydicom", frames="1")}, {"a": refused(CorruptImage("it broke"))}

    assert [str(difference) for difference in golden.differences(before, after)] == [
        "a: status: image → refused",
        "a: reason: (nothing) → CORRUPT_IMAGE",
        "a: message: (nothing) → it broke",
    ]


@pytest.mark.parametrize(("level", "found"), [("82", 0), ("7e", 0), ("83", 1), ("7d", 1)])
def test_lossy_pixels_may_be_off_by_two_wherever_they_are(level, found):
    """There are no bins, so no value is at the edge of one."""
    after = {"a": row(thumbnail=level + GREY[2:])}

    assert len(golden.differences({"a": row()}, after)) == found


def test_lossless_pixels_may_not_be_off_at_all():
    """The digest is of all of them, and the thumbnail says how far off they are."""
    after = {"a": row(digest="2", thumbnail="81" + GREY[2:])}

    assert [str(difference) for difference in golden.differences({"a": row(digest="1")}, after)] == [
        "a: digest: 1 → 2",
        "a: thumbnail: as recorded → up to 1 grey levels off",
    ]


def test_recording_again_leaves_what_differs_by_nothing_that_counts():
    """The table changes where an answer has."""
    before = {"close": row(), "far": row(), "gone": row()}
    after = {"close": row(thumbnail="82" + GREY[2:]), "far": row(thumbnail="ff" + GREY[2:])}

    assert golden.updated(before, after) == {"close": before["close"], "far": after["far"]}


def test_a_table_is_read_as_it_was_written(tmp_path):
    """Sorted by file, whatever the order of the answers."""
    rows = {"b": row(message='a "quoted", sentence'), "a": row()}

    golden.write(rows, tmp_path / "golden.csv")

    assert golden.read(tmp_path / "golden.csv") == rows
    assert list(golden.read(tmp_path / "golden.csv")) == ["a", "b"]
    assert golden.read(tmp_path / "none.csv") == {}


def test_thumbnails_are_means_of_blocks():
    """One word a frame, a pixel for each block of 16 by 16."""
    planes = np.zeros((2, 128, 128), dtype=np.uint8)
    planes[1, :16, 16:32] = 100
    planes[1, 0, 16] = 116

    first, second = thumbnails(planes).split()

    assert first == "00" * 64
    assert second == "00" + "64" + "00" * 62


def test_versions_of_decoders_are_left_out():
    """They change with the constraints, and are printed instead."""
    assert without_versions("pillow 13.0.0 at 1/8, pylibjpeg-openjpeg 2.6.0") == "pillow at 1/8, pylibjpeg-openjpeg"
    assert without_versions("raw") == "raw"


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        ("image", [row()], [refused(CorruptImage("x"))]),
        ("image_or_error", [row(), refused(CorruptImage("x"))], [row(status="failed")]),
        ("any_error", [refused(CorruptImage("x")), refused(NotAnImage("x"))], [row(), row(status="failed")]),
        ("not_an_image_or_error", [refused(NotAnImage("x"))], [row()]),
        ("IMAGE_TOO_LARGE|CORRUPT_IMAGE", [refused(CorruptImage("x"))], [row(), refused(NotAnImage("x"))]),
    ],
)
def test_what_the_manifest_expects(expect, good, bad):
    """The words of the hostile set's manifest."""
    assert all(command.as_expected(expect, each) for each in good)
    assert not any(command.as_expected(expect, each) for each in bad)


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (Answer(row=row(), cpu_s=0.9, peak_bytes=2**20), None),
        (Answer(row=row(), cpu_s=1.1, peak_bytes=2**20), "a: 1.10 s of processor time; 1 s are allowed"),
        (Answer(row=row(), cpu_s=0.1, peak_bytes=600 * 2**20), "a: 629145600 bytes of memory; 536870912 are allowed"),
        (Answer(row=refused(CorruptImage("it died")), cpu_s=float("inf"), peak_bytes=0), "a: its worker died"),
        (Answer(row=row(status="failed", reason="KeyError"), cpu_s=0, peak_bytes=0), "a: KeyError instead of an error"),
    ],
)
def test_what_costs_too_much_or_is_no_answer_is_named(found, fault):
    """The file, what it did, and what is allowed."""
    faults = list(command._faults([cases.Case(name="a", data=b"")], {"a": found}))

    assert faults[0].startswith(fault) if fault else not faults, faults


@pytest.mark.parametrize("bomb", list(cases.bombs()), ids=lambda bomb: bomb.name)
def test_bombs_are_refused_before_anything_is_decoded(bomb):
    """A deflate bomb, 20,000 sequences in each other, 50,000 frames that are not there."""
    assert answer(bomb.data).row["reason"] == bomb.expect
    assert not decodes(bomb.data)


@pytest.mark.parametrize("data", [cases.deflated(2**20), cases.nesting(10), cases.claimed_frames(1)])
def test_what_is_no_bomb_is_decoded(data):
    """The same files with less in them, so that it shows what "not decoded" is worth."""
    assert decodes(data)
