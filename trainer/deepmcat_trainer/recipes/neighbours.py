"""A projection trained on neighbours, over a pretrained encoder that stays as it is (projection.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepmcat_core.encoder import Encoder
from deepmcat_trainer.body import Body
from deepmcat_trainer.features import SplitImages, feature_store
from deepmcat_trainer.projection import ProjectionPlan, train_projection
from deepmcat_trainer.recipes import stages
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.recipes.stages import StagedSettings
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import BatchSize, Count, Positive, Probability

Floats = npt.NDArray[np.float32]


class NeighboursSettings(StagedSettings):
    """inputs: principal components of the features that the projection sees. neighbours: of an image, to draw from."""

    inputs: Count = 256
    hidden: Count = 512
    dim: Count = 64
    neighbours: Count = 8
    steps: Count = 1500
    batch_size: BatchSize = 256
    dropout: Probability = 0.3
    lr: Positive = 1e-3
    feature_memory_mb: Count = 4096  # features over this lie on disk, beside the artifact to come


def train(images: SplitImages, settings: NeighboursSettings, run: Run) -> Trained:
    """Train the projection on the features of `images`. Raises ConfigError, MissingExtra, InferenceError."""
    body = Body(stages.encoder(settings), images, run)
    dim = body.encoder.backbone.dim
    with feature_store(len(images), dim, memory_mb=settings.feature_memory_mb, folder=run.folder) as features:
        body.embed(features, "projection: embedding")
        return Trained(encoder=on_features(features, body.encoder, settings, run))


def on_features(features: Floats, encoder: Encoder, settings: NeighboursSettings, run: Run) -> Encoder:
    """`encoder` with a projection trained on its features (N, F) of the fit images."""
    plan = ProjectionPlan(
        inputs=settings.inputs, hidden=settings.hidden, dim=settings.dim, neighbours=settings.neighbours,
        steps=settings.steps, batch_size=settings.batch_size, dropout=settings.dropout, lr=settings.lr,
        seed=settings.seed,
    )  # fmt: skip
    return encoder.with_mlp(train_projection(features, plan, run))


NEIGHBOURS = Recipe(
    name="neighbours",
    summary="a projection trained on neighbours over a pretrained encoder: minutes on a CPU",
    settings=NeighboursSettings,
    train=train,
)
