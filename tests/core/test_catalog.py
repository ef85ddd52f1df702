"""Versions of the categories: append-only, chained, never reusing an id."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest

from deepmcat_core import catalog as catalogs
from deepmcat_core.catalog import UNKNOWN, Catalog, Category, CategoryStatus, Code, Term, new_id
from deepmcat_core.errors import ArtifactDamaged, ConfigError


def first() -> Catalog:
    return Catalog(
        version=1,
        k=3,
        categories=(
            Category(
                id="c-1",
                name="CT chest",
                clusters=(0, 2),
                codes=(Code(scheme="SCT", value="51185008", meaning="Chest"),),
                terms=(Term(attribute="Modality", value="CT", share=0.9),),
            ),
            Category(id="c-2", name="MR head", clusters=(1,)),
        ),
    )


def renamed(catalog: Catalog, name: str) -> Catalog:
    changed = dataclasses.replace(catalog.categories[0], name=name, status=CategoryStatus.NAMED)
    return catalog.succeed((changed, *catalog.categories[1:]))


def test_highest_version_is_in_force(tmp_path: Path) -> None:
    """What was appended last is what is read, with everything in it."""
    catalogs.append(tmp_path, first())
    second = renamed(first(), "CT thorax")
    catalogs.append(tmp_path, second)

    newest = catalogs.read_newest(tmp_path)

    assert newest == second
    assert [newest.by_cluster[c].name for c in range(3)] == ["CT thorax", "MR head", "CT thorax"]
    assert newest.parent == first().digest()


def test_two_writers_cannot_both_win(tmp_path: Path) -> None:
    """A version that exists is not overwritten: the second writer is told to start again."""
    catalogs.append(tmp_path, first())
    catalogs.append(tmp_path, renamed(first(), "a"))

    with pytest.raises(ConfigError, match="start again"):
        catalogs.append(tmp_path, renamed(first(), "b"))

    assert catalogs.read_newest(tmp_path).categories[0].name == "a"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001.json", "000002.json"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path) -> None:
    """There a version is written, durably and exclusively, under its own name."""

    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    catalogs.append(tmp_path, first(), link=no_links)
    catalogs.append(tmp_path, renamed(first(), "a"), link=no_links)
    with pytest.raises(ConfigError, match="start again"):
        catalogs.append(tmp_path, renamed(first(), "b"), link=no_links)

    assert catalogs.read_newest(tmp_path).categories[0].name == "a"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001.json", "000002.json"]


def test_ids_never_disappear() -> None:
    """A new version keeps every id, so that none can be reused; a category that is gone is retired."""
    with pytest.raises(ConfigError, match="retire"):
        first().succeed(first().categories[:1])


def test_retired_categories_are_not_assigned() -> None:
    """A retired category may keep its clusters on record; they belong to the one that took over."""
    a, b = first().categories
    merged = first().succeed(
        (
            dataclasses.replace(a, clusters=(0, 1, 2), lineage=("c-2",)),
            dataclasses.replace(b, status=CategoryStatus.RETIRED),
        )
    )

    assert {c.id for c in merged.by_cluster} == {"c-1"}
    assert merged.active == (merged.categories[0],)


@pytest.mark.parametrize(
    "categories",
    [
        (),
        (Category(id="a", name="a", clusters=(0, 1)),),
        (Category(id="a", name="a", clusters=(0, 1, 2)), Category(id="b", name="b", clusters=(2,))),
        (Category(id="a", name="a", clusters=(0, 1, 3)),),
        (Category(id="a", name="a", clusters=(0, 1)), Category(id="a", name="b", clusters=(2,))),
        (Category(id=UNKNOWN, name="a", clusters=(0, 1, 2)),),
    ],
    ids=["empty", "cluster without category", "cluster in two", "unknown cluster", "same id twice", "reserved id"],
)
def test_inconsistent_catalogs_are_refused(categories: tuple[Category, ...]) -> None:
    """Every cluster has exactly one active category, and ids are unique and not reserved."""
    with pytest.raises(ArtifactDamaged):
        Catalog(version=1, k=3, categories=categories)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("CT chest", "CT Chest"),
        lambda text: text[:-5],
        lambda _: "[]",
        lambda _: "{}",
        lambda text: text.replace('"suggested"', '"x"'),
    ],
)
def test_damage_is_noticed(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    """A catalog file that was edited or cut is refused."""
    catalogs.append(tmp_path, first())
    path = tmp_path / "000001.json"
    path.write_text(damage(path.read_text()))

    with pytest.raises(ArtifactDamaged):
        catalogs.read_newest(tmp_path)


def test_missing_version_is_noticed(tmp_path: Path) -> None:
    """The chain of versions has no gap and no foreign parent."""
    catalogs.append(tmp_path, first())
    second = renamed(first(), "x")
    catalogs.append(tmp_path, renamed(second, "y"))

    with pytest.raises(ArtifactDamaged, match="version 2 is missing"):
        catalogs.read_newest(tmp_path)

    catalogs.append(tmp_path, renamed(dataclasses.replace(first(), parent="other"), "z"))
    with pytest.raises(ArtifactDamaged, match="does not follow"):
        catalogs.read_newest(tmp_path)


def test_empty_folder_has_no_catalog(tmp_path: Path) -> None:
    """An artifact without any catalog version is damaged."""
    with pytest.raises(ArtifactDamaged, match="no catalog"):
        catalogs.read_newest(tmp_path)


def test_ids_are_opaque_and_unique() -> None:
    """New ids tell nothing and do not repeat."""
    ids = {new_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(json.dumps(i).isascii() and i.startswith("c-") for i in ids)
