"""Ids that survive: which categories live on, in which order people's work and the next tree decide, and the report."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deepmcat_core.artifact import Artifact
from deepmcat_core.catalog import Catalog, Category, CategoryStatus, Code
from deepmcat_core.encoder import build_encoder
from deepmcat_core.errors import ConfigError
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.commands.train import command as train
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.finish import finish
from deepmcat_trainer.grouping import FinalSettings
from deepmcat_trainer.lineage import OUTLIER, Change, Previous, largest_first, succeed
from deepmcat_trainer.names_csv import Row, apply_names
from deepmcat_trainer.previous import consult
from deepmcat_trainer.summary import print_summary

SIZE = 32
KINDS = 5


def succession(table, cut=None, named=(), lineages=None):
    """What becomes of the old categories.

    table: a row per new fine cluster, a column of images per old category a, b, … and a last one of outliers.
    cut: the group of each fine cluster, by default one of its own.
    """
    table = np.asarray(table)
    ids = "abcdefgh"[: table.shape[1] - 1]
    categories = tuple(
        Category(
            id=id_,
            name=id_.upper(),
            clusters=(i,),
            status=CategoryStatus.NAMED if id_ in named else CategoryStatus.SUGGESTED,
            lineage=(lineages or {}).get(id_, ()),
        )
        for i, id_ in enumerate(ids)
    )
    catalog = Catalog(version=3, k=len(ids), categories=categories)
    columns = [*range(len(ids)), OUTLIER]
    clusters = np.repeat(np.arange(len(table)), table.sum(axis=1))
    held = np.concatenate([np.repeat(columns, row) for row in table])
    cut = np.arange(len(table)) if cut is None else np.asarray(cut)
    return succeed(Previous(artifact_id="f" * 64, catalog=catalog, held=held), clusters, cut)


def fates(made):
    return [made.fate(a).value for a in range(len(made.old))]


def origins(made):
    return [made.origin(g).value for g in range(len(made.sizes))]


def kept(made):
    """Old id → the fine clusters that the category has now."""
    heirs = {made.old[a].id: g for g, a in enumerate(made.heirs) if a >= 0}
    return {id_: np.flatnonzero(made.groups == g).tolist() for id_, g in heirs.items()}


def test_equal_categories_are_kept():
    """The same images in other clusters: every category lives on, and every image keeps its id."""
    made = succession([[40, 0, 0], [0, 30, 0], [20, 0, 0]], cut=[0, 1, 0])
    assert fates(made) == origins(made) == ["kept", "kept"]
    assert kept(made) == {"a": [0, 2], "b": [1]}
    assert (made.living_on, made.keeping_id) == (90, 90)


def test_a_split_names_where_it_went_and_where_the_parts_come_from():
    """No part overlaps by half: the old id ends, its parts are new categories with it in their lineage."""
    made = succession([[40, 0, 0], [35, 0, 0], [25, 0, 0], [0, 50, 0]])
    assert fates(made) == ["split", "kept"]
    assert origins(made) == ["kept", "split", "split", "split"]
    assert made.successors(0) == [1, 2, 3]
    assert [made.lineage(g) for g in range(4)] == [(), ("a",), ("a",), ("a",)]
    assert (made.living_on, made.keeping_id) == (50, 50)


def test_the_larger_part_keeps_the_id_and_the_smaller_says_what_it_was_split_off():
    """Jaccard .6 is the category still; the images that left it are counted as living on without their id."""
    made = succession([[60, 0], [40, 0]])
    assert (fates(made), origins(made)) == (["kept"], ["kept", "split"])
    assert made.lineage(1) == ("a",)
    assert made.successors(0) == [0, 1]
    assert (made.living_on, made.keeping_id) == (100, 60)


def test_merged_categories_end_in_one_that_has_them_all_in_its_lineage():
    """None of three fills half of the group that they share: a new id."""
    made = succession([[30, 0, 0, 0], [0, 30, 0, 0], [0, 0, 30, 0]], cut=[0, 0, 0])
    assert (fates(made), origins(made)) == (["merged"] * 3, ["merged"])
    assert made.lineage(0) == ("a", "b", "c")


def test_a_small_category_merges_into_a_large_one_that_keeps_its_id():
    """Jaccard .9: the large one lives on, with the small one at the end of the lineage it had."""
    made = succession([[90, 0, 0], [0, 10, 0]], cut=[0, 0], lineages={"a": ("x",)})
    assert (fates(made), origins(made)) == (["kept", "merged"], ["kept"])
    assert made.lineage(0) == ("x", "b")


def test_a_category_without_images_or_scattered_over_others_is_retired():
    """No new category comes from it."""
    made = succession([[40, 0, 3, 0], [50, 0, 3, 0], [60, 0, 3, 0]])
    assert fates(made) == ["split", "retired", "retired"]
    assert made.successors(1) == made.successors(2) == []


def test_outliers_make_a_category_new_and_tie_it_to_no_old_one():
    """Images that the old artifact calls outliers count in the size of a category and in no overlap."""
    assert origins(succession([[0, 30]])) == ["new"]
    assert fates(succession([[60, 40]])) == ["kept"]
    diluted = succession([[40, 60]])
    assert (fates(diluted), origins(diluted)) == (["merged"], ["new"])
    assert diluted.lineage(0) == ("a",)
    assert diluted.jaccard[0, 0] == pytest.approx(0.4)


def test_at_exactly_one_half_one_of_two_lives_on():
    """Two equal halves of a group: the named one, else the first; never both, and the other's id is in the lineage."""
    table = [[30, 0, 0], [0, 30, 0]]
    assert kept(succession(table, cut=[0, 0])) == {"a": [0, 1]}
    assert kept(succession(table, cut=[0, 0])) == kept(succession(table, cut=[0, 0]))
    assert kept(succession([[30, 30, 0]], named="b")) == {"b": [0]}
    assert succession([[30, 30, 0]], named="b").lineage(0) == ("a",)
    parts = succession([[30, 0], [30, 0]])
    assert (fates(parts), origins(parts)) == (["kept"], ["kept", "split"])


def test_what_people_merged_stays_merged_wherever_the_tree_is_cut():
    """The clusters of a named category come together from groups of the cut that are far apart."""
    table = [[40, 0, 0], [0, 50, 0], [30, 0, 0], [30, 0, 0]]
    assert fates(succession(table)) == ["split", "kept"]
    made = succession(table, named="a")
    assert kept(made) == {"a": [0, 2, 3], "b": [1]}


def test_kinds_that_people_named_stay_apart_where_the_tree_joins_them():
    """A cut that joins two named categories is not followed; one that joins suggestions is."""
    table = [[40, 0, 0], [0, 30, 0], [0, 0, 20]]
    assert kept(succession(table, cut=[0, 0, 1], named="ab")) == {"a": [0], "b": [1]}
    assert kept(succession(table, cut=[0, 0, 1])) == {"a": [0, 1]}


def test_a_named_category_does_not_take_what_no_old_one_holds():
    """A whole kind of outliers in the group of a named category is a category of its own; a few odd images are not."""
    made = succession([[80, 0], [0, 20]], cut=[0, 0], named="a")
    assert (kept(made), origins(made)) == ({"a": [0]}, ["kept", "new"])
    few = succession([[80, 0], [0, 5]], cut=[0, 0], named="a")
    assert (kept(few), origins(few)) == ({"a": [0, 1]}, ["kept"])


def test_between_categories_that_live_on_the_old_artifact_decides():
    """Suggestions too: a cluster that the cut moved from one to another goes back, and one of its own does not."""
    table = [[60, 0, 0], [20, 0, 0], [0, 70, 0], [15, 0, 0], [0, 5, 12]]
    made = succession(table, cut=[0, 1, 1, 2, 1])
    assert kept(made) == {"a": [0, 1], "b": [2, 4]}
    assert origins(made) == ["kept", "kept", "split"]


def test_a_category_is_not_lost_in_settling_its_border():
    """Where every cluster of a category that lives on is another's by a hair, the cut stands."""
    made = succession([[30, 0, 0], [16, 16, 0]])
    assert kept(made) == {"a": [0], "b": [1]}


def test_a_named_category_that_the_clusters_do_not_show_claims_nothing():
    """It would reach no Jaccard of one half: the cut decides, as if nobody had named it."""
    table = [[30, 10, 25], [10, 60, 0], [30, 40, 0], [30, 40, 0]]
    assert succession(table, cut=[0, 0, 1, 1], named="a").groups.tolist() == (
        succession(table, cut=[0, 0, 1, 1]).groups.tolist()
    )


@given(
    table=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1, max_size=8),
    named=st.sets(st.sampled_from("abc")),
    data=st.data(),
)
def test_no_id_is_doubled_and_every_image_has_a_place(table, named, data):
    """Whatever the tables: numbers from the largest, no id twice, kept ones overlap by half, nothing is lost."""
    cut = data.draw(st.lists(st.integers(0, 3), min_size=len(table), max_size=len(table)))
    made = succession(table, cut=np.unique(cut, return_inverse=True)[1], named=named)
    heirs = made.heirs[made.heirs >= 0]
    assert len(set(heirs.tolist())) == len(heirs)
    assert sorted(made.sizes.tolist(), reverse=True) == made.sizes.tolist()
    assert made.sizes.sum() == np.sum(table)
    assert np.unique(made.groups).tolist() == list(range(len(made.sizes)))
    assert all(made.jaccard[a, g] >= 0.5 for g, a in enumerate(made.heirs) if a >= 0)
    assert all(made.jaccard[a].max() < 0.5 or fate in (Change.KEPT, Change.MERGED, Change.SPLIT)
               for a, fate in enumerate(map(made.fate, range(3))))  # fmt: skip
    assert made.keeping_id <= made.living_on <= made.held.sum()
    json.dumps(made.to_json([str(g) for g in range(len(made.sizes))]))


def test_groups_are_numbered_by_their_images():
    """Not by their clusters; equals keep the order of their numbers."""
    assert largest_first(np.array([7, 7, 2, 5]), np.array([1, 2, 2, 9])).tolist() == [1, 1, 2, 0]
    assert largest_first(np.array([7, 7, 2, 5]), np.array([1, 1, 2, 9])).tolist() == [2, 2, 1, 0]


# From here on with encoders: random ones tell these kinds of images apart.


def images_of(kinds, seed):
    """A pattern of its own for each kind, with noise: (n, SIZE, SIZE) uint8."""
    coarse = np.random.default_rng(5).integers(0, 256, size=(KINDS, 4, 4))
    noise = np.random.default_rng(seed).normal(scale=8, size=(len(kinds), SIZE, SIZE))
    return np.clip(np.kron(coarse, np.ones((1, SIZE // 4, SIZE // 4)))[kinds] + noise, 0, 255).astype(np.uint8)


def encoder(name, seed):
    torch.manual_seed(seed)
    return build_encoder(EncoderSpec(name=name)).eval()


def people(folder):
    """Name the categories of the artifact: kinds 0 and 1 become one, "pair"; the others get a name and a code."""
    artifact = Artifact.load(folder)
    first, second, *others = sorted(artifact.catalog.active, key=lambda c: c.terms[0].value)
    code = Code(scheme="99TEST", value="1")
    rows = [(first, "pair", ""), (second, second.name, first.id), *((c, f"my {c.name}", "") for c in others)]
    artifact.append_catalog(
        apply_names(
            artifact.catalog,
            [
                Row(line=i, category_id=c.id, name=name, codes=(code,), merge_into=into)
                for i, (c, name, into) in enumerate(rows)
            ],
        )
    )


@pytest.fixture(name="old", scope="module")
def old_fixture(tmp_path_factory, make_dataset):
    """A named artifact of four kinds, with verdicts: 240 fit and 120 calibration images."""
    folder = tmp_path_factory.mktemp("old")
    kinds = np.arange(360) % 4
    splits = ["fit"] * 240 + ["calibration"] * 120
    data = make_dataset(folder / "dataset", images_of(kinds, 0), splits, Modality=[f"K{kind}" for kind in kinds])
    finish(
        encoder("small-vgg-sobel", 0), Dataset.open(data), FinalSettings(fine_k=12, categories=4), {"seed": 0},
        folder / "artifact", device="cpu",
    )  # fmt: skip
    people(folder / "artifact")
    return folder / "artifact"


@pytest.fixture(name="archive", scope="module")
def archive_fixture(tmp_path_factory, make_dataset):
    """The same 240 fit images, 60 new ones of these kinds, and 30 of a kind that the old artifact has never seen."""
    kinds = np.concatenate([np.arange(240) % 4, np.arange(60) % 4, np.full(30, 4)])
    images = np.concatenate([images_of(np.arange(360) % 4, 0)[:240], images_of(kinds[240:], 1)])
    return make_dataset(tmp_path_factory.mktemp("new") / "dataset", images, ["fit"] * 330), kinds


def test_ids_survive_another_encoder_another_seed_and_new_images(old, archive, tmp_path):
    """≥ 99 % of the images of kept categories keep id, name and code; the unseen kind is new; the report says so."""
    dataset, kinds = Dataset.open(archive[0]), archive[1]
    before = consult(old, dataset, "cpu")
    settings = FinalSettings(fine_k=20, seed=3, categories=7)  # finer than the four kinds, so that the cut divides them
    made = finish(
        encoder("resnet18", 1), dataset, settings, {"seed": 3}, tmp_path / "artifact", device="cpu", previous=before
    )
    artifact, previous = Artifact.load(tmp_path / "artifact"), Artifact.load(old)
    named = {c.name: c for c in previous.catalog.active}
    now = {c.id: c for c in artifact.catalog.categories}

    assert set(named) == {"pair", "my K2", "my K3"}
    for category in named.values():
        assert (now[category.id].name, now[category.id].status, now[category.id].codes) == (
            category.name, CategoryStatus.NAMED, category.codes,
        )  # fmt: skip
    assert made.succession.keeping_id / made.succession.living_on >= 0.99
    assert made.succession.living_on >= 297
    retired = [c for c in previous.catalog.categories if c.status is CategoryStatus.RETIRED]
    assert [now[c.id].status for c in retired] == [CategoryStatus.RETIRED]
    assert artifact.catalog.version == 1

    record = artifact.manifest.training["previous"]
    assert (record["artifact_id"], record["catalog_version"]) == (previous.artifact_id, 2)
    assert [c["change"] for c in record["categories"]] == ["kept"] * 3
    unseen = [c for c in artifact.catalog.active if c.id not in {n.id for n in named.values()}]
    assert sorted(record["new"]) == sorted(c.id for c in unseen)
    assert sum(c.fit_images for c in unseen) == pytest.approx((kinds == 4).sum(), abs=3)

    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "said").open("w"))
    print_summary(made, console)
    said = console.export_text()
    console.file.close()
    assert "3 kept, 0 split, 0 merged, 0 retired" in said
    assert f"previous artifact {previous.artifact_id[:12]}" in said


def test_the_old_artifact_answers_as_it_would_serve(old, archive):
    """Outliers by its own calibration are nobody's; all others have the category of their kind."""
    before = consult(old, Dataset.open(archive[0]), "cpu")
    names = [c.name for c in before.catalog.active]
    kinds = archive[1]
    assert (before.held[kinds == 4] == OUTLIER).all()
    seen = kinds[before.held >= 0]
    assert len(seen) >= 0.95 * 300
    assert [names[a] for a in before.held[before.held >= 0]] == ["pair" if kind < 2 else f"my K{kind}" for kind in seen]


class Interrupts(io.StringIO):
    """A stderr that interrupts training when it hears of the second epoch."""

    def write(self, text):
        if "epoch 2/2" in text:
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.slow
def test_a_resumed_run_remembers_the_previous_artifact(old, archive, tmp_path):
    """An interrupted run goes on without saying --previous again: the ids live on all the same."""
    out = tmp_path / "artifact"
    small = ["epochs=2", "k=4", "pca_dim=8", "batch_size=32", "final.fine_k=16"]
    with redirect_stderr(Interrupts()), pytest.raises(KeyboardInterrupt):
        train(archive[0], out, set_=small, previous=old, recipe="deepmcat2021-small", device="cpu")
    train(archive[0], out, resume=True, device="cpu")

    record = Artifact.load(out).manifest.training["previous"]
    assert record["artifact_id"] == Artifact.load(old).artifact_id


def test_an_artifact_of_another_size_is_refused_with_the_way_out(old, make_dataset, tmp_path):
    """Its encoder would see images that it was not made for; nothing is trained before that is told."""
    other = make_dataset(tmp_path / "dataset", np.zeros((200, 16, 16), dtype=np.uint8), ["fit"] * 200)
    with pytest.raises(ConfigError, match=r"--previous .*size 16, the artifact needs 32.*prepare it again"):
        train(other, tmp_path / "artifact", previous=old, recipe="deepmcat2021-small", device="cpu")
    assert not (tmp_path / "artifact.run").exists()
