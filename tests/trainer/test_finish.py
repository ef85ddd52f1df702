"""The final stage: from an encoder and a dataset to an artifact that loads and says what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from deepmcat_core.artifact import Artifact
from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import Encoder, build_encoder
from deepmcat_core.engine import open_engine
from deepmcat_core.engine_torch import faster_precisions
from deepmcat_core.errors import ConfigError
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.commands import evaluate as evaluate_command
from deepmcat_trainer.commands import sheets as sheets_command
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.evaluate import evaluate
from deepmcat_trainer.finish import Finished, finish
from deepmcat_trainer.grouping import FinalSettings
from deepmcat_trainer.self_test import self_test_images
from deepmcat_trainer.summary import print_summary

SIZE = 32
KINDS = ("CT", "MR", "CR")


def images_of(kinds, seed=0):
    """A blocky prototype per kind, with noise on it: (n, SIZE, SIZE) uint8."""
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(5).integers(0, 256, size=(len(KINDS), 4, 4))
    prototypes = np.kron(coarse, np.ones((1, SIZE // 4, SIZE // 4)))
    noisy = prototypes[kinds] + rng.normal(scale=8, size=(len(kinds), SIZE, SIZE))
    return np.clip(noisy, 0, 255).astype(np.uint8)


class Pixels(Backbone):
    """The pixels, shrunk to 8 × 8; written so that it cannot be exported."""

    dim = 64

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        shrunk = nn.functional.avg_pool2d(images, SIZE // 8)
        if float(shrunk.detach().sum()) < -1:  # control flow on data
            return shrunk.flatten(1)
        return self.scale * (shrunk.flatten(1) - 0.5)


class Fickle(Backbone):
    """Computes something else when exported than when run."""

    dim = 64

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        shrunk = nn.functional.avg_pool2d(images, SIZE // 8).flatten(1) - 0.5
        return self.scale * (shrunk.flip(1) if torch.compiler.is_exporting() else shrunk)


class Unwell(Backbone):
    """Computes what is no number when exported."""

    dim = 64

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        shrunk = nn.functional.avg_pool2d(images, SIZE // 8).flatten(1) - 0.5
        return self.scale * (torch.log(-1 - shrunk.abs()) if torch.compiler.is_exporting() else shrunk)


def pixel_encoder():
    return Encoder(EncoderSpec(name="pixels"), Pixels())


@dataclass
class Made:
    finished: Finished
    artifact: Artifact
    dataset: Dataset
    folder: Path
    said: str


def run(folder, dataset_folder, encoder=None, **settings):
    console = Console(width=200, record=True, quiet=False, file=(folder / "said.txt").open("w"))
    dataset = Dataset.open(dataset_folder)
    encoder = encoder or pixel_encoder()
    training = {"recipe": "test", "seed": 0}
    finished = finish(
        encoder, dataset, FinalSettings(**settings), training, folder / "artifact", device="cpu", console=console
    )
    said = console.export_text()
    console.file.close()
    return Made(finished, Artifact.load(folder / "artifact"), dataset, folder, said)


@pytest.fixture(name="made", scope="module")
def made_fixture(tmp_path_factory, make_dataset):
    """An artifact from 400 images of three kinds, with the small torch encoder and its ONNX engine."""
    folder = tmp_path_factory.mktemp("finish")
    kinds = np.arange(400) % 3
    splits = ["fit"] * 240 + ["calibration"] * 100 + ["test"] * 60
    names = [KINDS[k] for k in kinds]
    make_dataset(folder / "dataset", images_of(kinds), splits, labels=names, Modality=names)
    torch.manual_seed(0)
    return run(folder, folder / "dataset", build_encoder(EncoderSpec(name="small-vgg-sobel")))


def test_the_artifact_is_what_was_finished(made):
    """Ids, numbers and catalog on disk are those returned, and every fine cluster has a category."""
    assert made.artifact.artifact_id == made.finished.artifact_id
    assert made.artifact.tree.k == made.finished.fine_k
    assert made.artifact.catalog == made.finished.catalog
    assert sum(c.fit_images for c in made.artifact.catalog.active) == 240
    assert all(c.id.startswith("c-") for c in made.artifact.catalog.active)


def test_categories_are_named_after_headers(made):
    """Three kinds that their headers tell apart: three categories with those names."""
    assert {c.name for c in made.artifact.catalog.active} == set(KINDS)
    assert made.artifact.catalog.active[0].terms[0].share == 1


def test_the_manifest_says_how_the_clusters_came_to_be(made):
    """Recipe, settings, suggestion and number of images are recorded."""
    training = made.artifact.manifest.training
    assert training["recipe"] == "test"
    assert training["final"]["suggested_k"] == made.finished.suggested_k == 3
    assert (training["final"]["fit_images"], training["final"]["calibration_images"]) == (240, 100)
    assert training["final"]["linkage"] == made.artifact.tree.linkage == "ward"


def test_the_onnx_engine_passed_the_gate(made):
    """Both engines open, pass the self-test and give the same clusters."""
    assert made.artifact.onnx is not None
    assert made.artifact.manifest.equality_gate == made.finished.gate.to_json()
    assert made.finished.gate.images == 240 + 8
    images = made.dataset.images[:20][:, None]
    clusters = [
        Centroids(made.artifact.centroids).nearest(open_engine(made.artifact, device="cpu", engine=e).embed(images), 1)
        for e in ("onnx", "torch")
    ]
    np.testing.assert_array_equal(clusters[0][0], clusters[1][0])


def test_reduced_precisions_are_measured_where_they_are_faster(made):
    """The manifest has a gate for each precision that this device is faster in, by all calibration images there are."""
    gates = made.artifact.manifest.precision_gates
    assert tuple(gate.precision for gate in gates) == faster_precisions("cpu")
    assert all((gate.device, gate.images) == ("cpu", 100) for gate in gates)
    assert all(gate.passed for gate in gates), [gate.failure() for gate in gates]


def test_calibration_comes_from_the_calibration_split(made):
    """A hundred held-out images give verdicts."""
    assert made.artifact.calibration.images == 100
    assert made.artifact.calibration.has_verdicts


def test_the_artifact_holds_no_patient_pixels(made):
    """The self-test's images are synthetic: the same whatever the dataset."""
    np.testing.assert_array_equal(made.artifact.self_test.images, self_test_images(SIZE))


def test_the_summary_names_categories_and_what_verdicts_are_worth(made):
    """Category, count, share, terms, the calibration's sentence and the path."""
    console = Console(width=300, record=True, file=(made.folder / "summary.txt").open("w"))
    print_summary(made.finished, console)
    console.file.close()
    text = console.export_text()
    for word in ("CT", "80", "33.3%", "bounds false rejection only", str(made.folder / "artifact")):
        assert word in text


def test_evaluate_has_exactly_the_promised_keys(made):
    """The scores of three separable kinds at their own number are perfect, and JSON has the contract's keys."""
    result = evaluate(made.artifact, made.dataset, lambda: open_engine(made.artifact, device="cpu")).to_json()
    assert list(result) == ["n", "classes", "split", "fine_k", "suggested_k", "cuts"]
    assert (result["n"], result["classes"], result["split"], result["suggested_k"]) == (60, 3, "test", 3)
    keys = (
        "k purity inverse_purity balanced_purity worst_recall mapped_purity mapped_balanced_purity "
        "mapped_worst_recall nmi ami ari accuracy"
    )
    assert all(list(cut) == keys.split() for cut in result["cuts"])
    assert [cut["k"] for cut in result["cuts"]] == [3, 5, 6, 12, result["fine_k"]]
    assert all(value == pytest.approx(1) for key, value in result["cuts"][0].items() if key != "k")


def test_the_evaluate_command_writes_json_and_a_table(made, tmp_path, capsys):
    """`deepmcat evaluate ARTIFACT DATASET --json FILE`."""
    evaluate_command.command(made.folder / "artifact", made.folder / "dataset", tmp_path / "scores.json", device="cpu")
    assert json.loads((tmp_path / "scores.json").read_text())["n"] == 60
    assert "60 images of 3 classes" in capsys.readouterr().out


def test_the_evaluate_command_refuses_what_it_cannot_do_before_it_begins(made, tmp_path, capsys):
    """A split that is none, with the near one; a file that cannot be written, and one that can be is left as it was."""
    artifact, dataset = made.folder / "artifact", made.folder / "dataset"
    (tmp_path / "old.json").write_text("old")
    with pytest.raises(ConfigError, match=r"--split is 'tets'. Did you mean 'test'"):
        evaluate_command.command(artifact, dataset, split="tets", device="cpu")
    for file in (tmp_path, Path("/proc/self/scores.json"), tmp_path / "old.json" / "scores.json"):
        with pytest.raises(ConfigError, match=r"cannot write to .*; choose another --json"):
            evaluate_command.command(artifact, dataset, file, device="cpu")
    with pytest.raises(ConfigError, match="CUDA devices"):
        evaluate_command.command(artifact, dataset, tmp_path / "old.json", device="cuda:99")

    assert (tmp_path / "old.json").read_text() == "old"
    assert capsys.readouterr() == ("", "")


def test_the_sheets_command_writes_a_page_per_category(made, tmp_path, capsys):
    """`deepmcat sheets ARTIFACT DATASET --out DIR`."""
    sheets_command.command(made.folder / "artifact", made.folder / "dataset", tmp_path / "sheets", device="cpu")
    ids = {c.id for c in made.artifact.catalog.active}
    assert {path.stem[-len("c-0123456789abcdef") :] for path in (tmp_path / "sheets").iterdir()} == ids
    assert "3 contact sheets" in capsys.readouterr().out


def test_sheets_go_to_a_folder_of_their_own(made, tmp_path, capsys):
    """Images of patients are not put among other things; an empty folder will do."""
    artifact, dataset = made.folder / "artifact", made.folder / "dataset"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("")
    with pytest.raises(ConfigError, match=r"home is not empty.*choose a new folder"):
        sheets_command.command(artifact, dataset, tmp_path / "home", device="cpu")
    with pytest.raises(ConfigError, match=r"cannot write to .*; choose another --out"):
        sheets_command.command(artifact, dataset, tmp_path / "home" / "letter.txt", device="cpu")
    assert capsys.readouterr() == ("", "")
    (tmp_path / "home" / "letter.txt").unlink()

    sheets_command.command(artifact, dataset, tmp_path / "home", device="cpu")
    assert len(list((tmp_path / "home").glob("*.png"))) == 3


def test_another_preprocessing_is_refused(made, tmp_path, make_dataset):
    """A dataset of another size is not what the artifact computes on."""
    make_dataset(tmp_path / "other", np.zeros((4, 16, 16), np.uint8), ["fit"] * 4, labels=["a"] * 4)
    with pytest.raises(ConfigError, match="size 16, the artifact needs 32"):
        evaluate(made.artifact, Dataset.open(tmp_path / "other"), pytest.fail)


def test_a_dataset_without_labels_is_refused(made, tmp_path, make_dataset):
    """Scoring needs labels; the sentence says how to get them."""
    make_dataset(tmp_path / "other", np.zeros((4, SIZE, SIZE), np.uint8), ["fit"] * 4)
    with pytest.raises(ConfigError, match="--labels"):
        evaluate(made.artifact, Dataset.open(tmp_path / "other"), pytest.fail)


def test_a_split_without_labelled_images_is_refused(made, tmp_path, make_dataset):
    """Nothing to score in the test split."""
    make_dataset(tmp_path / "other", np.zeros((4, SIZE, SIZE), np.uint8), ["fit"] * 4, labels=["a"] * 4)
    with pytest.raises(ConfigError, match="no image of the test split has a label"):
        evaluate(made.artifact, Dataset.open(tmp_path / "other"), lambda: open_engine(made.artifact, device="cpu"))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 60])
def test_few_images_make_an_artifact_without_verdicts(tmp_path, make_dataset, capsys, n):
    """Any number of images, no calibration split: it loads and says that it gives no verdicts."""
    make_dataset(tmp_path / "dataset", images_of(np.arange(n) % 3), ["fit"] * n)
    made = run(tmp_path, tmp_path / "dataset")
    assert made.finished.fine_k <= max(1, n // 3)
    assert not made.artifact.calibration.has_verdicts
    assert "No outlier verdicts" in made.artifact.calibration.note()
    assert "embedding the calibration split" not in capsys.readouterr().err
    assert made.artifact.catalog.active[0].name == "Category 1"


def test_identical_images_are_one_category(tmp_path, make_dataset):
    """Sixty copies of one image: one cluster, one category."""
    make_dataset(tmp_path / "dataset", np.repeat(images_of([0]), 60, axis=0), ["fit"] * 60)
    made = run(tmp_path, tmp_path / "dataset")
    assert (made.finished.fine_k, len(made.finished.catalog.active)) == (1, 1)


def test_an_encoder_that_cannot_be_exported_goes_without_onnx(tmp_path, make_dataset):
    """One line says so, and the artifact runs on torch."""
    make_dataset(tmp_path / "dataset", images_of(np.arange(30) % 3), ["fit"] * 30)
    made = run(tmp_path, tmp_path / "dataset")
    assert made.artifact.onnx is None
    assert made.artifact.manifest.equality_gate is None
    assert "no ONNX engine: " in made.said


def test_an_onnx_engine_that_differs_is_left_out(tmp_path, make_dataset):
    """The gate catches it and is on record; clusters and self-test are those of torch, and one line says so."""
    make_dataset(tmp_path / "dataset", images_of(np.arange(60) % 3), ["fit"] * 60)
    made = run(tmp_path, tmp_path / "dataset", Encoder(EncoderSpec(name="fickle"), Fickle()))
    assert made.artifact.onnx is None
    assert not made.finished.gate.passed
    assert made.artifact.manifest.equality_gate == made.finished.gate.to_json()
    assert "engines/encoder.onnx" not in made.artifact.manifest.files
    with pytest.raises(ConfigError, match="the artifact has no ONNX engine"):
        open_engine(made.artifact, device="cpu", engine="onnx")
    assert "no ONNX engine: its lowest cosine to torch is" in made.said
    (tmp_path / "other").mkdir()
    expected = run(tmp_path / "other", tmp_path / "dataset", pixel_encoder())
    np.testing.assert_allclose(made.artifact.centroids, expected.artifact.centroids, atol=1e-6)


def test_an_onnx_engine_that_fails_costs_no_training(tmp_path, make_dataset):
    """An engine that loads and then gives no numbers is left out with one line; the artifact is made all the same."""
    make_dataset(tmp_path / "dataset", images_of(np.arange(60) % 3), ["fit"] * 60)
    made = run(tmp_path, tmp_path / "dataset", Encoder(EncoderSpec(name="unwell"), Unwell()))
    assert made.artifact.onnx is None
    assert made.finished.gate is None
    assert "no ONNX engine: the encoder gave embeddings that are not finite" in made.said


def test_the_settings_can_say_how_many_categories(tmp_path, make_dataset):
    """final.categories overrides the suggestion, which stays on record."""
    make_dataset(tmp_path / "dataset", images_of(np.arange(90) % 3), ["fit"] * 90)
    made = run(tmp_path, tmp_path / "dataset", categories=5, linkage="average", fine_k=12)
    assert len(made.finished.catalog.active) == 5
    assert (made.finished.suggested_k, made.finished.linkage, made.finished.fine_k) == (3, "average", 12)


def test_the_same_seed_makes_the_same_clusters(tmp_path, make_dataset):
    """Centroids, tree and calibration repeat themselves; ids of categories are new."""
    make_dataset(tmp_path / "dataset", images_of(np.arange(90) % 3), ["fit"] * 60 + ["calibration"] * 30)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = (run(tmp_path / name, tmp_path / "dataset").artifact for name in "ab")
    for name in ("centroids.safetensors", "tree.json", "calibration.safetensors", "selftest.safetensors"):
        assert a.manifest.files[name] == b.manifest.files[name]
    assert {c.id for c in a.catalog.active}.isdisjoint(c.id for c in b.catalog.active)


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        ({"fine_k": 40}, 30, "'final.fine_k' is 40; the dataset has 30 images"),
        ({"categories": 11}, 30, "'final.categories' is 11; there are 10 fine clusters"),
        ({}, 0, "no image to fit"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(settings, images, message):
    """One sentence with the value and what there is."""
    with pytest.raises(ConfigError, match=message):
        FinalSettings(**settings).clusters_for(images)
