"""The loop: it learns, resumes bit for bit, keeps to its budget, and says what goes wrong."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.encoder import Encoder
from deepmcat_core.errors import ConfigError, InferenceError
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer import monitor, optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.budget import Budget, parse_duration
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.features import SplitImages, embed, feature_store
from deepmcat_trainer.loop import Training
from deepmcat_trainer.monitor import EpochReport, Health
from deepmcat_trainer.objectives.classification import Classification
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.recipes.deepmcat2021 import SmallSettings
from deepmcat_trainer.run import Run

SIZE = 16


class Tiny(Backbone):
    """A convolution, batch norm, dropout: everything that has a state or draws at random."""

    dim = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 16),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


def patterns(n=200, seed=0):
    """Three patterns with noise, (n, SIZE, SIZE) uint8, and which pattern each is."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n) % 3
    coarse = np.random.default_rng(5).integers(0, 256, size=(3, 4, 4))
    noisy = np.kron(coarse, np.ones((1, 4, 4)))[kinds] + rng.normal(scale=12, size=(n, SIZE, SIZE))
    return np.clip(noisy, 0, 255).astype(np.uint8), kinds


def settings(**changes):
    return SmallSettings(**{"epochs": 3, "k": 6, "pca_dim": 8, "batch_size": 32, "lr": 0.02} | changes)


class Clock:
    """A clock that an epoch moves: each reading is `step` seconds after the one before."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@dataclasses.dataclass
class Made:
    training: Training
    said: io.StringIO


def make(folder, given, *, images=None, resume=False, budget=None, device="cpu"):
    said = io.StringIO()
    torch.manual_seed(1)
    encoder = Encoder(EncoderSpec(name="tiny"), Tiny())
    pixels = patterns()[0] if images is None else images
    run = Run(
        folder=folder,
        key=RunKey(recipe="test", settings=given.model_dump(mode="json", exclude={"epochs"}), dataset="d"),
        device=device,
        budget=budget or Budget(),
        console=Console(file=said, width=200),
        resume=resume,
    )
    body = Body(encoder, SplitImages(pixels, np.arange(len(pixels)), device), run)
    sgd = optimisers.sgd([encoder], lr=given.lr, momentum=given.momentum, weight_decay=given.weight_decay)
    return Made(Training(body, Classification(body, given), sgd, given), said)


def state(training):
    return {name: value.clone() for name, value in training.body.encoder.state_dict().items()}


def test_it_learns(tmp_path):
    """The loss falls below ln K, and no weight stays where it was."""
    made = make(tmp_path, settings(epochs=15, k=3, lr=0.05, head_lr=0.5, crop_scale=(0.5, 1.0)))
    before = state(made.training)
    made.training.train()

    assert made.training.history[-1].loss < 0.7 * math.log(3)
    after = made.training.body.encoder.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_learns_and_resumes_on_a_gpu(tmp_path):
    """Images on the device, bfloat16, and a checkpoint that goes on there: the loss falls as on a CPU."""
    values = {"k": 3, "lr": 0.05, "head_lr": 0.5, "crop_scale": (0.5, 1.0)}
    make(tmp_path, settings(epochs=5, **values), device="cuda:0").training.train()
    resumed = make(tmp_path, settings(epochs=15, **values), device="cuda:0", resume=True).training
    resumed.train()

    assert resumed.body.images.batch(np.arange(3)).is_cuda
    assert len(resumed.history) == 15
    assert resumed.history[-1].loss < 0.8 * math.log(3)


def test_one_line_an_epoch(tmp_path):
    """Loss, ln K, NMI, empty clusters, largest share and rate; no NMI for the first epoch."""
    made = make(tmp_path, settings(epochs=2))
    made.training.train()
    first, second = [line for line in made.said.getvalue().splitlines() if line.startswith("epoch")]

    assert first.startswith("epoch 1/2: loss 1.")
    assert "(ln K 1.792), NMI to previous –, 0 of 6 clusters empty, largest " in first
    assert "NMI to previous 0." in second or "NMI to previous 1." in second
    assert second.endswith(" images/s")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """Three epochs, or one and then two more from the checkpoint: the same weights, statistics, momentum and labels."""
    whole = make(tmp_path / "whole", settings()).training
    whole.train()
    make(tmp_path / "parts", settings(epochs=1)).training.train()
    resumed = make(tmp_path / "parts", settings(), resume=True)
    resumed.training.train()

    assert "resuming after epoch 1 of 3" in resumed.said.getvalue()
    a, b = whole.checkpoint(), resumed.training.checkpoint()
    for part in ("encoder", "objective", "optimiser"):
        first, second = getattr(a, part), getattr(b, part)
        assert first.keys() == second.keys() != set()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert [(r.loss, r.nmi) for r in a.history] == [(r.loss, r.nmi) for r in b.history]


def test_seeds_differ_by_epoch_and_by_run(tmp_path):
    """Another seed is another run; the same seed is the same run, whatever torch's generator was before."""
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        training = make(tmp_path / name, settings(epochs=1, seed=seed)).training
        torch.manual_seed(len(losses))
        training.train()
        losses.append(training.history[0].loss)

    assert losses[0] == losses[1] != losses[2]


def test_training_leaves_torch_s_generator_alone(tmp_path):
    """What a caller draws afterwards does not depend on training."""
    training = make(tmp_path, settings(epochs=1)).training
    before = torch.random.get_rng_state()
    training.train()

    assert torch.equal(before, torch.random.get_rng_state())


def test_labels_belong_to_the_images_they_came_from(tmp_path):
    """Features and labels are in the order of the split, also where the split is not in the order of the file."""
    pixels, kinds = patterns()
    rows = np.random.default_rng(3).permutation(200)[:120]
    body = make(tmp_path, settings()).training.body
    body.images = SplitImages(pixels, rows, "cpu")
    features = np.empty((120, 16), dtype=np.float32)
    body.embed(features, "")
    alone = np.empty((1, 16), dtype=np.float32)
    body.images = SplitImages(pixels, rows[70:71], "cpu")
    body.embed(alone, "")

    assert np.allclose(features[70], alone[0], atol=1e-5)
    assert len(np.unique(kinds[rows])) == 3


def test_features_beyond_memory_change_nothing(tmp_path):
    """On disk or in memory, the same features; the file is gone afterwards."""
    with feature_store(300_000, 1, memory_mb=1, folder=tmp_path) as stored:
        assert isinstance(stored, np.memmap)
        stored[-1] = 3
        assert stored[-1] == 3
    with feature_store(10, 1, memory_mb=1, folder=tmp_path) as stored:
        assert not isinstance(stored, np.memmap)

    assert list(tmp_path.iterdir()) == []


def test_empty_clusters_do_not_stop_training(tmp_path):
    """Three different images in 20 clusters: most are empty, and the run goes on and says so."""
    made = make(tmp_path, settings(k=20, epochs=2), images=np.repeat(patterns(3)[0], 40, axis=0))
    made.training.train()

    assert len(made.training.history) == 2
    assert made.training.history[0].k == 20
    assert made.training.history[0].empty > 0


def test_the_time_budget_ends_training_before_an_epoch_that_would_not_fit(tmp_path):
    """Readings of the clock 10 s apart, several an epoch, so that 100 s end training early, and it says so."""
    made = make(tmp_path, settings(epochs=50), budget=Budget(100, Clock(10.0)))
    made.training.train()

    assert 1 <= len(made.training.history) < 5
    assert f"time budget: stopping after epoch {len(made.training.history)} of 50" in made.said.getvalue()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text, seconds):
    """Seconds, minutes and hours."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "0s", "-5m", "10 parsecs", ""])
def test_a_duration_that_is_none_is_a_sentence(text):
    """The sentence shows how to write one."""
    with pytest.raises(ConfigError, match="such as 90s, 10m or 2h"):
        parse_duration(text)


def test_too_few_images_name_the_way_out(tmp_path):
    """Below 64 images only recipes that train nothing make sense."""
    with pytest.raises(ConfigError, match=r"at least 64 images .* has 20.*frozen"):
        make(tmp_path, settings(), images=patterns(20)[0])


def test_numbers_that_go_wrong_are_an_error(tmp_path):
    """A learning rate that blows the weights up ends in a sentence and not in an artifact."""
    with pytest.raises(InferenceError, match="try a lower learning rate"):
        make(tmp_path, settings(lr=1e12, head_lr=1e12)).training.train()


def test_a_last_batch_of_one_is_left_out(tmp_path):
    """Batch norm cannot train on one image: 65 images in batches of 32."""
    made = make(tmp_path, settings(epochs=1), images=patterns(65)[0])
    made.training.train()

    assert math.isfinite(made.training.history[0].loss)


def healthy(**changes):
    values = {
        "epoch": 6, "loss": 9.0, "cross_entropy": 1.0, "chance": math.log(64), "k": 64, "nmi": 0.5,
        "empty": 0, "largest_share": 0.1, "spread": 0.8, "effective_rank": 20.0,
        "cluster_s": 1.0, "train_s": 1.0, "images_per_s": 1.0,
    }  # fmt: skip
    return EpochReport(**values | changes)


@pytest.mark.parametrize(
    ("changes", "signatures"),
    [
        ({}, []),
        ({"cross_entropy": math.log(64) * 0.99}, ["stuck"]),
        ({"cross_entropy": math.log(64) * 0.99, "epoch": 4}, []),
        ({"loss": math.log(64) * 0.99}, []),
        ({"cross_entropy": None, "chance": None, "k": None}, []),
        ({"largest_share": 0.51, "epoch": 1}, ["giant"]),
        ({"spread": 0.05}, ["collapsed"]),
        ({"effective_rank": 2.0}, ["collapsed"]),
    ],
)
def test_signatures_of_failure(changes, signatures):
    """Each has its warning, and healthy training none."""
    assert list(monitor.warnings(healthy(**changes))) == signatures


def test_health_of_a_sample_is_that_of_the_features():
    """From 60 of 60 rows in 16 dimensions the same as from principal components; also of fewer rows than dimensions."""
    rng = np.random.default_rng(0)
    features = rng.normal(loc=1, scale=np.linspace(0.1, 2, 16), size=(60, 16)).astype(np.float32)
    sampled, whole = monitor.sample_health(features), monitor.health(Pca.fit(features, 16))

    assert sampled.spread == pytest.approx(whole.spread, rel=1e-4)
    assert sampled.effective_rank == pytest.approx(whole.effective_rank, rel=1e-4)
    assert monitor.sample_health(features[:5]).effective_rank <= 4.001
    assert monitor.sample_health(np.ones((9, 4), np.float32)) == Health(spread=0.0, effective_rank=0.0)


def test_a_warning_is_said_once(tmp_path):
    """One giant cluster in every epoch: one warning."""
    made = make(tmp_path, settings(epochs=3, k=2), images=np.repeat(patterns(3)[0], [150, 2, 2], axis=0))
    made.training.train()

    assert made.said.getvalue().count("warning: one cluster holds") == 1


def test_embeddings_are_in_the_order_of_the_indices(engine):
    """A row per index, whatever the batches."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 32, 32), dtype=np.uint8)
    rows = np.array([7, 3, 11])

    assert np.allclose(embed(engine, pixels, rows, description="", batch_size=2), engine.embed(pixels[rows][:, None]))


def test_an_empty_split_is_embedded_without_a_word(engine, capsys):
    """No index, no row, and no line about it."""
    none = embed(engine, np.zeros((20, 32, 32), np.uint8), np.arange(0), description="embedding nothing")

    assert none.shape == (0, engine.dim)
    assert capsys.readouterr().err == ""
