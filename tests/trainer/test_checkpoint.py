"""Checkpoints: whole, in force at once, and only for the run they are of."""

from __future__ import annotations

import json
import resource

import pytest
import torch

from deepmcat_core.errors import ConfigError
from deepmcat_trainer import checkpoint as checkpoints
from deepmcat_trainer.checkpoint import Checkpoint, RunKey
from deepmcat_trainer.monitor import EpochReport

KEY = RunKey(recipe="deepmcat2021", settings={"lr": 0.05, "crop_scale": [0.08, 1.0]}, dataset="d1")


def report(epoch):
    return EpochReport(
        epoch=epoch, loss=1.5, cross_entropy=1.5, chance=2.1, k=8, nmi=None if epoch == 1 else 0.5, empty=0,
        largest_share=0.2, spread=0.7, effective_rank=9.0, cluster_s=1.0, train_s=2.0, images_per_s=100.0,
    )  # fmt: skip


def checkpoint(epochs=2):
    return Checkpoint(
        key=KEY,
        encoder={"a.weight": torch.randn(3, 4), "bn.num_batches_tracked": torch.tensor(7)},
        objective={"labels": torch.arange(10) % 3},
        optimiser={"encoder.a.weight/momentum_buffer": torch.randn(3, 4)},
        history=tuple(report(epoch) for epoch in range(1, epochs + 1)),
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    """Weights of every type, the objective's and the optimiser's state, history and key survive, bit for bit."""
    saved = checkpoint()
    saved.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)

    assert (loaded.key, loaded.history, loaded.epoch) == (saved.key, saved.history, 2)
    for part in ("encoder", "objective", "optimiser"):
        before, after = getattr(saved, part), getattr(loaded, part)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_newest_replaces_the_one_before(tmp_path):
    """One checkpoint at a time: the folder does not grow with the epochs."""
    checkpoint(1).save(tmp_path)
    checkpoint(2).save(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "epoch-0002.safetensors"]


def test_a_full_disk_is_one_sentence_and_costs_no_finished_epoch(tmp_path):
    """Where an epoch cannot be written, the one before stays in force."""
    checkpoint(1).save(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, old[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot write to .*; make room there, and --resume goes on"):
            checkpoint(2).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

    assert Checkpoint.load(tmp_path).epoch == 1


def test_a_kill_while_saving_leaves_the_epoch_before(tmp_path):
    """Tensors of the next epoch that are not yet in force disturb nothing."""
    checkpoint(1).save(tmp_path)
    (tmp_path / "epoch-0002.safetensors").write_bytes(b"half of")

    assert Checkpoint.load(tmp_path).epoch == 1


def test_nothing_is_pickled(tmp_path):
    """JSON and safetensors only."""
    checkpoint().save(tmp_path)

    json.loads((tmp_path / "checkpoint.json").read_bytes())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["checkpoint.json", "epoch-0002.safetensors"])
def test_damage_is_a_sentence(tmp_path, name):
    """A changed or cut file is refused, with the way out."""
    checkpoint().save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])

    with pytest.raises(ConfigError, match="damaged and cannot be resumed; remove it"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (RunKey(recipe="frozen", settings=KEY.settings, dataset="d1"), "of recipe 'deepmcat2021', not 'frozen'"),
        (RunKey(recipe=KEY.recipe, settings=KEY.settings, dataset="d2"), "from another data set"),
        (RunKey(recipe=KEY.recipe, settings=KEY.settings | {"lr": 0.1}, dataset="d1"), "'lr' is 0.1; .* has 0.05"),
        (RunKey(recipe=KEY.recipe, settings=KEY.settings | {"k": 5}, dataset="d1"), "'k' is 5; .* has None"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, other, sentence):
    """The first thing that differs is named."""
    checkpoint().save(tmp_path)

    with pytest.raises(ConfigError, match=sentence):
        other.require_equal(checkpoints.read_key(tmp_path), tmp_path)
