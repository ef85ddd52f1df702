"""Cells of the quality bench: what identifies a result, and what a second run does again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.quality import cells, report, sources
from benchmarks.quality.cells import Cell
from benchmarks.quality.features import Given, Source, Store, embeddings
from benchmarks.quality.fitted import Clusters, Fitted
from benchmarks.quality.method import Method
from benchmarks.quality.methods import METHODS
from benchmarks.quality.problems import Fold, Problem
from benchmarks.quality.recipe_methods import final_stage
from benchmarks.quality.task import Task
from benchmarks.quality.worker import Job, measure

from deepmcat_core.encoder import Encoder
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.grouping import FinalSettings

MACHINE = {"cpu": "a cpu", "cores": 2, "load": 0.0, "date": "2026-01-01T00:00:00", "commit": None}


def brightness(task: Task) -> Fitted:
    """A method for tests: dark images are one cluster, light ones the other."""
    groups = {part: (task.images[rows].mean(axis=(1, 2)) > 127).astype(np.int64)
              for part, rows in (("fit", task.fold.fit), ("test", task.fold.test))}  # fmt: skip
    return Fitted(fine=Clusters(k=2, fit=groups["fit"], test=groups["test"]), seconds={"look": 0.5})


METHOD = Method(name="brightness", summary="by brightness", fit=brightness)


@pytest.fixture(name="images")
def images_fixture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Forty images of 16 px, every second one light."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (40, 16, 16), dtype=np.uint8)
    images[1::2] += 128
    return images


@pytest.fixture(name="problem")
def problem_fixture() -> Problem:
    """Dark or light, 20 to fit, 8 to calibrate, 12 to test."""
    rows = np.arange(40)
    fold = Fold(fit=rows[:20], calibration=rows[20:28], test=rows[28:])
    return Problem(name="toy/balanced", classes=("dark", "light"), truth=rows % 2, folds=(fold,))


def record(cell: Cell, images: Any, folder: Path) -> dict[str, Any]:
    """The record of a cell."""
    store = Store(folder=folder, digest="", rows=np.arange(len(images)))
    job = Job(
        dataset=folder, store=store, problem=cell.problem, method=cell.method.name, seed=cell.seed, device="cpu",
        cell=cell.name, hash=cell.hash(), path=cell.path(folder), machine=MACHINE,
    )  # fmt: skip
    return measure(job, cell.method, images, folder)


def test_whatever_a_result_depends_on_changes_its_hash(problem: Problem) -> None:
    """Data, split, classes, method, settings, sources and seed: each alone makes another cell."""
    cell = Cell(problem=problem, method=METHOD, seed=0, data="d")
    fold = problem.folds[0]
    others = [
        dataclasses.replace(cell, data="e"),
        dataclasses.replace(cell, seed=1),
        dataclasses.replace(cell, method=dataclasses.replace(METHOD, name="other")),
        dataclasses.replace(cell, method=dataclasses.replace(METHOD, settings={"k": 3})),
        dataclasses.replace(cell, method=dataclasses.replace(METHOD, depends=sources.TRAINING)),
        dataclasses.replace(cell, problem=dataclasses.replace(problem, truth=1 - problem.truth)),
        dataclasses.replace(cell, problem=dataclasses.replace(
            problem, folds=(dataclasses.replace(fold, fit=fold.fit[1:]),))),
    ]  # fmt: skip

    assert len({c.hash() for c in [cell, *others]}) == 1 + len(others)
    assert Cell(problem=problem, method=METHOD, seed=0, data="d").hash() == cell.hash()


def test_a_change_of_a_source_file_changes_its_digest(tmp_path: Path) -> None:
    """Contents count, and a pattern that finds no file is an error instead of a dependency on nothing."""
    (tmp_path / "a.py").write_text("1")
    before = sources.digest.__wrapped__(("*.py",), tmp_path)
    (tmp_path / "a.py").write_text("2")

    assert sources.digest.__wrapped__(("*.py",), tmp_path) != before
    with pytest.raises(ValueError, match="names no file"):
        sources.files(("*.rs",), tmp_path)


def test_results_depend_on_what_training_imports_and_not_on_how_images_are_read():
    """A merge tree's code makes results stale, at any remove; a decoder's does not, as the corpus has its pixels."""
    files = set(sources.closure("deepmcat_trainer.grouping", without=sources.NO_PART))

    assert {"trainer/deepmcat_trainer/grouping.py", "trainer/deepmcat_trainer/seeding.py"} <= files
    assert files <= set(sources.TRAINING)
    assert not any("dicom" in name or "decod" in name for name in sources.TRAINING)


def test_the_sources_of_every_method_are_there() -> None:
    """Each method's patterns find files."""
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert all(len(method.version()) == 64 for method in METHODS)


def test_a_finished_cell_is_found_and_a_changed_one_is_missing(problem: Problem, images: Any, tmp_path: Path) -> None:
    """What is there is not made again; after a change of settings the old result shows only where that is asked for."""
    cell = Cell(problem=problem, method=METHOD, seed=0, data="d")
    changed = dataclasses.replace(cell, method=dataclasses.replace(METHOD, settings={"new": True}))
    cells.write(cell.path(tmp_path), record(cell, images, tmp_path))

    found, fresh, stale = (
        cells.find([cell], tmp_path, keep_stale=False),
        cells.find([changed], tmp_path, keep_stale=False),
        cells.find([changed], tmp_path, keep_stale=True),
    )

    assert ([r["stale"] for r in found.records], found.missing) == ([False], [])
    assert (fresh.records, fresh.missing) == ([], [cell.name])
    assert ([r["stale"] for r in stale.records], stale.missing) == ([True], [])


def test_a_record_scores_what_the_method_gave(problem: Problem, images: Any, tmp_path: Path) -> None:
    """Brightness sorts dark from light; the seconds are the method's own, and nothing partial is left."""
    cell = Cell(problem=problem, method=METHOD, seed=0, data="d")
    made = record(cell, images, tmp_path)
    cells.write(cell.path(tmp_path), made)

    assert made["scores"]["levels"]["1 C"]["mapped_purity"] == 1.0
    assert (made["seconds"], made["images_per_s"]) == ({"look": 0.5}, 40.0)
    assert [path.name for path in tmp_path.iterdir()] == [f"toy-balanced--brightness--s0.{cell.hash()}.json"]


def test_cells_are_chosen_by_part_or_glob(problem: Problem) -> None:
    """Part of a name, or a glob over all of it."""
    made = list(cells.every([problem], [METHOD], range(3), lambda rows: "d"))

    assert [c.seed for c in cells.chosen(made, ["s1"])] == [1]
    assert [c.seed for c in cells.chosen(made, ["toy/* s[02]"])] == [0, 2]
    assert len(cells.chosen(made, [])) == 3


def test_methods_see_no_labels_unless_they_say_so(problem: Problem, images: Any, tmp_path: Path) -> None:
    """The labels of the fit split reach a bound, and nobody else."""
    seen = {}

    def look(task: Task) -> Fitted:
        seen["labels"] = task.fit_labels
        return brightness(task)

    for labels in (False, True):
        method = dataclasses.replace(METHOD, fit=look, labels=labels)
        record(Cell(problem=problem, method=method, seed=0, data="d"), images, tmp_path)
        assert (seen["labels"] is not None) == labels


def test_expected_seconds_are_those_of_other_seeds(problem: Problem) -> None:
    """Known cells of the same problem and method say how long; else the guess, by the number of images."""
    cell = Cell(problem=problem, method=METHOD, seed=0, data="d")
    known = [{"problem": problem.name, "method": METHOD.name, "wall_s": s} for s in (10.0, 20.0)]

    assert cell.expected_seconds(known) == 15.0
    assert cell.expected_seconds([]) == 1.0


def test_embeddings_from_features_are_the_encoders_own() -> None:
    """A projection learned by a recipe is applied to cached features as the encoder would."""
    encoder = Encoder(
        EncoderSpec(name="small-vgg-sobel", options={"projection": {"kind": "mlp", "in": 6, "hidden": 8, "out": 3}}),
        Given(6),
    )
    features = np.random.default_rng(2).normal(size=(7, 6)).astype(np.float32)

    with torch.inference_mode():
        expected = encoder.eval()(torch.from_numpy(features[:, None, None])).numpy()

    np.testing.assert_allclose(embeddings(encoder, features, "cpu"), expected, atol=1e-6)


def test_cached_features_are_the_backbones_own(tmp_path: Path) -> None:
    """What the store gives for rows of a corpus: the features of those images, not scaled to unit length."""
    images = np.random.default_rng(1).integers(0, 256, (10, 64, 64), dtype=np.uint8)
    store = Store(folder=tmp_path, digest="d", rows=np.asarray([3, 5, 8]))
    source = Source(encoder="small-vgg-sobel", weights_seed=0)

    store.make(source, images, "cpu", MACHINE)
    with torch.inference_mode():
        expected = source.build().features(torch.from_numpy(images[[8, 3], None])).numpy()

    np.testing.assert_allclose(store.at(source, np.asarray([8, 3])), expected, rtol=1e-3, atol=1e-4)
    assert store.record(source)["images"] == 3


def test_the_final_stage_is_the_products(tmp_path: Path) -> None:
    """Two bundles of vectors become two groups, with a p-value for each test image."""
    rng = np.random.default_rng(0)

    def bundle(n: int) -> Any:
        rows = np.zeros((n, 4), dtype=np.float32)
        rows[np.arange(n), np.arange(n) % 2] = 1
        rows += rng.normal(scale=0.05, size=rows.shape).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    fitted = final_stage([bundle(300), bundle(250), bundle(40)], (4,), FinalSettings(), "cpu")

    cut = fitted.at(2)
    assert cut is not None
    assert fitted.verdicts is not None
    assert len(set(cut.test[::2])) == len(set(cut.test[1::2])) == 1
    assert cut.test[0] != cut.test[1]
    assert not np.isnan(fitted.verdicts.p_values).any()


def test_the_page_lists_what_is_missing(problem: Problem, images: Any, tmp_path: Path) -> None:
    """A page from one record names the others, and no target is met that was not measured."""
    first, second = cells.every([problem], [METHOD], range(2), lambda rows: "d")
    cells.write(first.path(tmp_path / "cells"), record(first, images, tmp_path))

    found = cells.find([first, second], tmp_path / "cells", keep_stale=False)
    page, *plots = report.write(found, tmp_path / "none.json", [problem], tmp_path / "docs", quick=False)

    text = page.read_text()
    assert "- toy/balanced brightness s1" in text
    assert "| yes |" not in text
    assert all(plot.read_text().startswith("<svg") for plot in plots)
    assert json.loads(first.path(tmp_path / "cells").read_text())["cell"] == first.name
