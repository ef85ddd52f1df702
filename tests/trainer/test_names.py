"""Naming by CSV: what is exported comes back, and every mistake names its line."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_core.artifact import Artifact
from deepmcat_core.catalog import Catalog, Category, CategoryStatus, Code, Term
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.commands.names import Action, command
from deepmcat_trainer.names_csv import apply_names, export_names, read_names

HEADER = "category_id,name,codes,merge_into\n"
FORMULAS = ["=1+1", "+49", "-2", "@SUM(A1)", "'=1", "''+x", "'quoted'", "plain"]


def catalog():
    return Catalog(
        version=1,
        k=4,
        categories=(
            Category(
                id="a", name="CT", clusters=(0,), fit_images=30, terms=(Term(attribute="M", value="CT", share=1),)
            ),
            Category(id="b", name="MR", clusters=(1, 2), fit_images=60),
            Category(id="c", name="MR 2", clusters=(3,), fit_images=10),
        ),
    )


@pytest.fixture(name="apply")
def apply_fixture(tmp_path):
    """Apply a CSV text to the catalog above."""

    def apply(text, to=None):
        (tmp_path / "names.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return apply_names(to or catalog(), read_names(tmp_path / "names.csv"))

    return apply


def by_id(catalog):
    return {c.id: c for c in catalog.categories}


def test_an_export_without_edits_changes_nothing(apply):
    """Importing what was exported gives the same version, not a new one."""
    before = catalog()
    assert apply(export_names(before), to=before) is before


def test_export_lists_the_largest_first_with_its_terms():
    """People start with the category that most images are in."""
    rows = list(csv.DictReader(io.StringIO(export_names(catalog()))))
    assert [r["category_id"] for r in rows] == ["b", "a", "c"]
    assert rows[1]["terms"] == "M=CT 100%"
    assert rows[0]["fit_images"] == "60"


def test_a_new_name_and_codes_make_a_category_named(apply):
    """Renaming raises the version and the status, and leaves the others alone."""
    after = apply(HEADER + r"a,CT chest,SCT:51185008:Chest; DCM:1:a\:b\;c," + "\n")
    renamed = by_id(after)["a"]
    assert (after.version, after.parent) == (2, catalog().digest())
    assert (renamed.name, renamed.status) == ("CT chest", CategoryStatus.NAMED)
    assert renamed.codes == (
        Code(scheme="SCT", value="51185008", meaning="Chest"),
        Code(scheme="DCM", value="1", meaning="a:b;c"),
    )
    assert by_id(after)["b"] == by_id(catalog())["b"]


def test_merging_moves_clusters_retires_the_source_and_keeps_its_lineage(apply):
    """A chain of merges ends in its last category, which people have then decided on: it counts as named."""
    after = by_id(apply(HEADER + "c,MR 2,,b\na,CT,,c\n"))
    assert after["b"].clusters == (0, 1, 2, 3)
    assert (after["b"].fit_images, set(after["b"].lineage)) == (100, {"a", "c"})
    assert after["b"].terms == (Term(attribute="M", value="CT", share=0.3),)
    assert after["b"].status is CategoryStatus.NAMED
    assert {after[i].status for i in "ac"} == {CategoryStatus.RETIRED}
    assert after["a"].clusters == after["c"].clusters == ()


def test_a_merged_categorys_name_is_free(apply):
    """The name of a retired category can be given to another in the same file."""
    after = by_id(apply(HEADER + "c,MR 2,,b\na,MR 2,,\n"))
    assert after["a"].name == "MR 2"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("x,CT,,\n", "line 2: there is no category 'x'"),
        ("a,CT,,x\n", "line 2: there is no category 'x'"),
        (",CT,,\n", "line 2: there is no category"),
        ("a,CT,,\na,CT,,\n", "line 3: category 'a' is on line 2 already"),
        ("a,CT,,a\n", "line 2: merging 'a' ends nowhere"),
        ("b,MR,,\na,CT,,c\nc,MR,,a\n", "line 3: merging 'a' ends nowhere"),
        ("a,,,\n", "line 2: category 'a' needs a name"),
        ("a,  ,,\n", "line 2: category 'a' needs a name"),
        ("a,Unknown,,\n", "line 2: the name 'unknown' is reserved"),
        ("b,ct,,\n", "line 2: the name 'ct' is also that of 'a'"),
        ("a,CT,Chest,\n", "line 2: a code is SCHEME:VALUE:MEANING"),
        ("a,CT, chest,,b\n", "line 2 has more cells"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(apply, rows, message):
    """Unknown ids, circles, names that are empty, reserved or taken, and broken cells are refused."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        apply(HEADER + rows)


def test_a_retired_category_cannot_be_edited(apply):
    """Ids of merged categories are known, but out of use."""
    after = apply(HEADER + "c,MR 2,,b\n")
    with pytest.raises(ConfigError, match="line 2: category 'c' is retired"):
        apply(HEADER + "a,CT,,c\n", to=after)


@pytest.mark.parametrize("rows", ["c,MR 2,,b\n", "c,MR 2,,b\na,CT,,c\nb,Heads,SCT:1:Head,\n"])
def test_the_same_merges_again_change_nothing(apply, rows):
    """A file that was imported can be imported again, chains of merges and edits of their target included."""
    after = apply(HEADER + rows)
    assert apply(HEADER + rows, to=after) is after


def test_a_part_split_off_by_training_can_be_merged_back_twice(apply):
    """A category that came from another by training goes back into it, and the same file changes nothing again."""
    split = replace(
        catalog(), categories=tuple(replace(c, lineage=("b",) * (c.id == "c")) for c in catalog().categories)
    )
    after = apply(HEADER + "c,MR 2,,b\n", to=split)
    assert by_id(after)["b"].lineage == ("c",)
    assert apply(HEADER + "c,MR 2,,b\n", to=after) is after


def test_merges_made_before_a_later_one_are_still_done(apply):
    """Where the target has been merged further, an old file still asks for nothing new."""
    after = apply(HEADER + "b,MR,,a\n", to=apply(HEADER + "c,MR 2,,b\n"))
    assert apply(HEADER + "c,MR 2,,b\n", to=after) is after


@pytest.mark.parametrize("target", ["a", "c", ""])
def test_a_retired_category_cannot_go_elsewhere(apply, target):
    """What was merged into one category can be merged neither into another nor into itself, nor be renamed."""
    after = apply(HEADER + "c,MR 2,,b\n")
    with pytest.raises(ConfigError, match="line 2: category 'c' is retired"):
        apply(HEADER + f"c,MR 2,,{target}\n", to=after)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not UTF-8"), (b"", "no column"), (b"category_id,name\n", "no column 'codes'")],
)
def test_a_file_that_is_not_ours_is_refused(apply, content, message):
    """Another encoding, an empty file, missing columns."""
    with pytest.raises(ConfigError, match=message):
        apply(content)


def test_spreadsheets_may_save_with_a_mark_and_semicolons(apply):
    """A byte order mark, ";" between cells, CRLF and blank rows are what spreadsheets write."""
    after = apply(b'\xef\xbb\xbfcategory_id;name;codes;merge_into\r\na;"CT, chest";"SCT:1:x;SCT:2:y";\r\n;;;\r\n')
    assert by_id(after)["a"].name == "CT, chest"
    assert len(by_id(after)["a"].codes) == 2


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_never_starts_a_formula_and_comes_back_as_it_was(apply, name):
    """Cells that a spreadsheet would run start with a quote, which import takes away again."""
    before = Catalog(version=1, k=1, categories=(Category(id="a", name=name, clusters=(0,)),))
    text = export_names(before)
    cell = next(csv.DictReader(io.StringIO(text)))["name"]
    assert cell[0] not in "=+-@"
    assert apply(text, to=before) is before


code_text = st.text(alphabet="ab:;\\,\" '=-", min_size=1, max_size=6).filter(lambda t: t == t.strip())


@given(st.lists(st.builds(Code, scheme=code_text, value=code_text, meaning=code_text), max_size=3))
def test_codes_come_back_whatever_is_in_them(tmp_path_factory, codes):
    """Separators, quotes and backslashes inside codes survive the round trip."""
    before = Catalog(version=1, k=1, categories=(Category(id="a", name="x", clusters=(0,), codes=tuple(codes)),))
    path = tmp_path_factory.getbasetemp() / "codes.csv"
    path.write_text(export_names(before), newline="")
    assert apply_names(before, read_names(path)) is before


def test_the_command_writes_a_version_that_loads(artifact_folder, tmp_path, capsys):
    """Export, edit, import: the artifact keeps its id and has a new catalog version in force."""
    file = tmp_path / "names.csv"
    before = Artifact.load(artifact_folder)
    command(Action.EXPORT, artifact_folder, file)
    file.write_text(file.read_text().replace("CT chest", "Thorax CT"))
    command(Action.IMPORT, artifact_folder, file)
    after = Artifact.load(artifact_folder)
    assert after.artifact_id == before.artifact_id
    assert after.catalog.version == 2
    assert "Thorax CT" in {c.name for c in after.catalog.active}
    command(Action.IMPORT, artifact_folder, file)
    assert Artifact.load(artifact_folder).catalog.version == 2
    assert "nothing to change" in capsys.readouterr().out


def test_export_never_overwrites(artifact_folder, tmp_path):
    """A file that is there may hold somebody's work."""
    (tmp_path / "names.csv").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        command(Action.EXPORT, artifact_folder, tmp_path / "names.csv")
    assert (tmp_path / "names.csv").read_text() == "mine"
