"""Objectives: each learns what it says, keeps its state in the checkpoint, and treats rare images as it says."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.encoder import Encoder
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer import losses, optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.loop import Training
from deepmcat_trainer.objectives.deepcluster_v2 import DeepClusterV2
from deepmcat_trainer.objectives.refine import Refinement
from deepmcat_trainer.objectives.vicreg import Vicreg
from deepmcat_trainer.recipes import deepcluster_v2, refine, vicreg
from deepmcat_trainer.run import Run

SIZE, N = 16, 120
SETTINGS = {
    DeepClusterV2: deepcluster_v2.Settings(k=(4, 6), hidden=16, projection_dim=8, epochs=3, batch_size=32, lr=0.01),
    Vicreg: vicreg.Settings(expander=16, epochs=3, batch_size=32, lr=0.01),
    Refinement: refine.Settings(expander=16, epochs=3, batch_size=32, lr=0.003, neighbours=5),
}
ALL = list(SETTINGS)


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


def patterns():
    """Three patterns with noise, (N, SIZE, SIZE) uint8, and which pattern each is."""
    rng = np.random.default_rng(0)
    kinds = np.arange(N) % 3
    coarse = np.random.default_rng(5).integers(0, 256, size=(3, 4, 4))
    noisy = np.kron(coarse, np.ones((1, 4, 4)))[kinds] + rng.normal(scale=12, size=(N, SIZE, SIZE))
    return np.clip(noisy, 0, 255).astype(np.uint8), kinds


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


def make(folder, objective, *, resume=False, **changes):
    """Training towards `objective`, from weights that are always the same."""
    given = SETTINGS[objective].model_copy(update=changes)
    torch.manual_seed(1)
    encoder = Encoder(EncoderSpec(name="tiny"), Tiny())
    key = RunKey(recipe="test", settings=given.model_dump(mode="json"), dataset="d")
    console = Console(file=io.StringIO(), width=200)
    run = Run(folder=folder, key=key, device="cpu", budget=Budget(), console=console, resume=resume)
    body = Body(encoder, SplitImages(patterns()[0], np.arange(N), "cpu"), run)
    made = objective(body, given)
    adamw = optimisers.adamw([(encoder, given.lr), (made, given.lr)], weight_decay=given.weight_decay)
    return Training(body, made, adamw, given, optimisers.cosine)


def interrupt(training, after):
    """Train for `after` epochs of a longer run."""
    begin = training.objective.begin_epoch

    def begin_epoch(epoch):
        if epoch > after:
            raise Interrupted
        return begin(epoch)

    training.objective.begin_epoch = begin_epoch
    with pytest.raises(Interrupted):
        training.train()


def assert_equal(a, b):
    for part in ("encoder", "objective", "optimiser"):
        first, second = getattr(a, part), getattr(b, part)
        assert first.keys() == second.keys() != set()
        for name in first:
            assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("objective", ALL)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, objective):
    """Weights, memories, expanders, rates and the optimiser's averages: all as if nobody had interrupted."""
    whole = make(tmp_path / "whole", objective)
    whole.train()
    interrupt(make(tmp_path / "parts", objective), after=1)
    resumed = make(tmp_path / "parts", objective, resume=True)
    resumed.train()

    assert_equal(whole.checkpoint(), resumed.checkpoint())
    assert [(r.loss, r.nmi) for r in whole.history] == [(r.loss, r.nmi) for r in resumed.history]


@pytest.mark.parametrize("objective", ALL)
def test_everything_learns_and_equal_seeds_learn_the_same(tmp_path, objective):
    """No parameter with a say stays where it was; the same seed ends at the same weights, another one elsewhere."""
    runs = [make(tmp_path / str(i), objective, seed=seed, epochs=1) for i, seed in enumerate((0, 0, 1))]
    before = {name: value.clone() for name, value in runs[0].checkpoint().encoder.items()}
    for training in runs:
        training.train()
    first, second, third = (training.checkpoint() for training in runs)

    assert_equal(first, second)
    moved = [name for name in before if not torch.equal(before[name], first.encoder[name])]
    assert {name for name, _ in runs[0].body.encoder.named_parameters()} <= set(moved)
    assert not torch.equal(first.encoder["backbone.layers.0.weight"], third.encoder["backbone.layers.0.weight"])


@pytest.mark.parametrize("objective", ALL)
def test_the_loss_falls(tmp_path, objective):
    """Within some epochs on three patterns."""
    training = make(tmp_path, objective, epochs=12)
    training.train()
    reports = training.history

    if objective is Vicreg:
        assert reports[-1].loss < 0.8 * reports[0].loss
        assert (reports[0].k, reports[0].chance, reports[0].cross_entropy) == (None, None, None)
        assert "cross-entropy" not in reports[0].line(12)
    else:
        assert reports[-1].cross_entropy < 0.8 * reports[-1].chance
        assert "(ln K " in reports[0].line(12)


def test_refining_draws_kinds_apart(tmp_path):
    """Images of one pattern end nearer to each other, against those of others, than they began."""
    _, kinds = patterns()
    same = kinds[:, None] == kinds[None]
    training = make(tmp_path, Refinement, epochs=8, lr=0.01)

    def margin():
        features = np.empty((N, 16), dtype=np.float32)
        training.body.embed(features, "")
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        cosines = units @ units.T
        return cosines[same].mean() - cosines[~same].mean()

    before = margin()
    training.train()

    assert margin() > before + 0.1


def test_refining_teaches_labels_of_the_nearest_images_first(tmp_path):
    """Half of each fine cluster in the first epoch, and more in the last; the least is one image of each."""
    training = make(tmp_path, Refinement, targets="fine", confident=(0.5, 1.0))
    objective = training.objective
    objective.begin_epoch(1)
    first, labels = objective._targets.clone(), objective.labels.clone()
    taught = [float((first[labels == k] >= 0).float().mean()) for k in range(int(labels.max()) + 1)]
    objective.begin_epoch(3)

    assert min(taught) >= 0.5
    assert 0.5 <= float((first >= 0).float().mean()) < 0.75
    assert torch.equal(first[first >= 0], labels[first >= 0])
    assert (objective._targets >= 0).all()


def test_refining_keeps_its_groups_as_long_as_it_is_told(tmp_path):
    """With `regroup_every=2` the second epoch has the groups of the first, though the encoder has moved on."""
    training = make(tmp_path, Refinement, regroup_every=2)
    seen = []
    begin = training.objective.begin_epoch

    def begin_epoch(epoch):
        begun = begin(epoch)
        seen.append(training.objective.prototypes.clone())
        return begun

    training.objective.begin_epoch = begin_epoch
    training.train()

    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("frozen", [True, False])
def test_refining_leaves_the_statistics_of_batch_norm_alone_unless_told(tmp_path, frozen):
    """They are what the weights were trained with."""
    training = make(tmp_path, Refinement, epochs=1, freeze_batch_norm=frozen)
    before = training.body.encoder.backbone.layers[1].running_mean.clone()
    training.train()

    assert torch.equal(before, training.body.encoder.backbone.layers[1].running_mean) is frozen


def test_the_memory_is_of_the_last_epoch(tmp_path):
    """What the sampler left out is projected again; nothing in the memory is of random weights."""
    training = make(tmp_path, DeepClusterV2, epochs=1)
    objective = training.objective
    training.train()
    left_out = objective.stale.clone()
    old = objective.memory.clone()
    objective.begin_epoch(2)

    assert 0 < left_out.sum() < N / 2
    assert torch.equal(old[:, ~left_out], objective.memory[:, ~left_out])
    assert not torch.allclose(old[:, left_out], objective.memory[:, left_out])
    assert torch.allclose(objective.memory.norm(dim=2), torch.ones(2, N), atol=1e-5)


def test_each_head_has_its_own_clusters(tmp_path):
    """Four and six prototypes of unit length, and ln K is the mean over the heads."""
    training = make(tmp_path, DeepClusterV2)
    begun = training.objective.begin_epoch(1)
    heads = training.objective._heads

    assert [len(head.prototypes) for head in heads] == [4, 6]
    assert all(torch.allclose(head.prototypes.norm(dim=1), torch.ones(1), atol=1e-4) for head in heads)
    assert begun.chance == pytest.approx((math.log(4) + math.log(6)) / 2)
    assert begun.clusters.k == 4


def test_the_spread_of_projections_counts_where_it_is_asked_for(tmp_path):
    """The cross-entropy is the same; the total is more."""
    rows, both = np.arange(32), []
    for weight in (0.0, 0.04):
        training = make(tmp_path, DeepClusterV2, vicreg_weight=weight)
        torch.manual_seed(0)
        training.objective.begin_epoch(1)
        training.body.encoder.eval()
        both.append(training.objective.loss(rows))

    assert both[0].total == both[0].cross_entropy == both[1].cross_entropy
    assert both[1].total > both[1].cross_entropy


def test_vicreg_knows_collapse():
    """Equal rows cost the whole variance term; different, uncorrelated rows of variance 1 that agree cost nothing."""
    same = torch.ones(64, 4)
    spread = torch.linalg.qr(torch.randn(64, 5, generator=torch.Generator().manual_seed(0)))[0]
    spread = spread - spread.mean(0)
    whitened = torch.linalg.qr(spread)[0][:, :4] * math.sqrt(63)

    assert losses.vicreg(same, same) == pytest.approx(50 * 0.99, abs=0.01)
    assert losses.vicreg(whitened, whitened) == pytest.approx(0, abs=0.01)
    assert losses.vicreg(whitened, -whitened) > 25
    assert losses.vicreg(whitened, whitened[:, [0, 0, 1, 2]]) > 1


def test_images_without_a_target_teach_nothing():
    """−1 has no say in the mean, and a batch of nothing else costs nothing rather than NaN."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, -1, 2, -1])

    expected = nn.functional.cross_entropy(logits[[0, 2]], targets[[0, 2]])
    assert losses.cross_entropy(logits, targets) == pytest.approx(float(expected))
    assert losses.cross_entropy(logits, torch.full((4,), -1)) == 0


def test_the_rate_rises_and_falls():
    """From 0 to the full rate within a twentieth of the run, and to 0 at its end."""
    assert [optimisers.cosine(done) for done in (0, 0.025, 0.05, 1)] == pytest.approx([0, 0.5, 1, 0])
    assert optimisers.cosine(0.525) == pytest.approx(0.5)


def test_confidence_goes_from_low_to_high():
    """The other way round is refused."""
    with pytest.raises(ValueError, match=r"confident goes from low to high, not from 0.9 to 0.5"):
        refine.Settings(confident=(0.9, 0.5))
