"""What each process of a run computes in test_distributed.py: `everything` in one process, or this under torchrun.

torchrun --nproc-per-node 2 distributed_worker.py FILE.npz
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.encoder import Encoder
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer import optimisers, pseudo_labels
from deepmcat_trainer.body import Body
from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.clustering import kmeans
from deepmcat_trainer.distributed import World, joined, leave
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.loop import Training
from deepmcat_trainer.objectives.objective import Loss, Objective
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.recipes.deepmcat2021 import SmallSettings
from deepmcat_trainer.run import Run

IMAGES, SIZE, DIM = 83, 16, 8  # 83: the processes' parts are not of one size


class FrozenNorm(Backbone):
    """A convolution and batch norm that stays in eval mode: images of a batch do not mix."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, DIM),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class Classes(Objective):
    """Cross-entropy into classes that images have by their number, with a head that the loop trains."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(DIM, 5)

    def begin_epoch(self, epoch: int):
        raise NotImplementedError

    def loss(self, rows):
        logits = self.head(self.body.encoder.features(self.body.images.batch(rows)))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(rows % 5))
        return Loss(loss, loss)


def kinds():
    """5,000 embeddings of 12 kinds, (N, 24) unit rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 24))[rng.integers(0, 12, 5000)] + 0.6 * rng.normal(size=(5000, 24))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def body(world: World) -> Body:
    pixels = np.random.default_rng(1).integers(0, 256, size=(IMAGES, SIZE, SIZE), dtype=np.uint8)
    torch.manual_seed(0)
    run = Run(
        folder=Path(), key=RunKey(recipe="", settings={}, dataset=""), device="cpu", budget=Budget(),
        console=Console(file=io.StringIO()), world=world,
    )  # fmt: skip
    encoder = Encoder(EncoderSpec(name="frozen-norm"), FrozenNorm())
    return Body(encoder, SplitImages(pixels, np.arange(IMAGES), "cpu"), run)


def step(world: World):
    """What one step of the loop over all images changes, with a learning rate of 1: minus the gradient."""
    trained = body(world)
    objective = Classes(trained)
    modules = (trained.encoder, objective)
    before = torch.cat([p.detach().reshape(-1).clone() for module in modules for p in module.parameters()])
    settings = SmallSettings(batch_size=IMAGES)
    optimiser = optimisers.sgd(modules, lr=1.0, momentum=0.0, weight_decay=0.0)
    loss = Training(trained, objective, optimiser, settings).learn(np.random.default_rng(2).permutation(IMAGES), 1)[0]
    after = torch.cat([p.detach().reshape(-1) for module in modules for p in module.parameters()])
    return (after - before).numpy(), np.array([loss])


def everything(world: World):
    """All that has to be the same in one process and in several."""
    embeddings = kinds()
    mine = embeddings[world.part(len(embeddings))]
    made = {}
    for name, most in (("all", 10_000), ("sample", 2000)):
        clusters = kmeans(mine, 40, niter=8, nredo=1, seed=0, most_rows=most, world=world)
        made |= {f"kmeans_{name}": clusters.assignment, f"distances_{name}": clusters.distances}
        found = pseudo_labels.assign(mine, k=12, pca_dim=10, iterations=8, seed=0, most_rows=most, world=world)
        made[f"labels_{name}"] = found.labels
    pca = Pca.fit(mine, 10, chunk_rows=512, world=world)
    made |= {"components": pca.components.numpy(), "spectrum": pca.spectrum, "direction": np.array([pca.direction])}
    features = np.zeros((IMAGES, DIM), dtype=np.float32)
    body(world).embed(features, "")
    made["features"] = features
    made["step"], made["loss"] = step(world)
    return made


if __name__ == "__main__":
    with joined("cpu") as everyone:
        np.savez(f"{sys.argv[1]}-{everyone.rank}.npz", **everything(everyone))
    leave()
