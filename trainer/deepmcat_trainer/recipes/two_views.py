"""What recipes have in common that train on two views of an image from random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deepmcat_trainer import optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.encoders import from_scratch, projected, seeded_weights
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.loop import Training
from deepmcat_trainer.objectives.objective import Objective
from deepmcat_trainer.recipes.base import Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import DeepClusterV2Settings, VicregSettings

Settings = TypeVar("Settings", VicregSettings, DeepClusterV2Settings)


def train_from_scratch(
    make: Callable[[Body, Settings], Objective], images: SplitImages, settings: Settings, run: Run
) -> Trained:
    """Train from random weights with the objective that `make` gives, then project long features.

    Raises ConfigError, InferenceError.
    """
    with seeded_weights(settings.seed):
        body = Body(from_scratch(settings, images.size), images, run)
        objective = make(body, settings)
    optimiser = optimisers.adamw(
        [(body.encoder, settings.lr), (objective, settings.lr)], weight_decay=settings.weight_decay
    )
    training = Training(body, objective, optimiser, settings, optimisers.cosine)
    training.train()
    return Trained(encoder=projected(body, settings), history=tuple(training.history))
