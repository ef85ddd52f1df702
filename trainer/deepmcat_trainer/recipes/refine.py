"""A pretrained encoder, refined end to end by the clusters and neighbours that it finds itself (objectives/refine.py).

Meant for a GPU: each step takes the whole encoder forward and back, for an image and for one of its neighbours.
"""

from __future__ import annotations

from deepmcat_trainer import optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.encoders import from_weights, seeded_weights
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.loop import Training
from deepmcat_trainer.objectives.refine import Refinement
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import BatchSize, Count, Positive, RefineSettings


class Settings(RefineSettings):
    """A rate that is small beside the one the weights were trained at: a start this good is easily lost."""

    encoder: str = "efficientnet-lite0"
    epochs: Count = 10
    batch_size: BatchSize = 128
    lr: Positive = 1e-4


def train(images: SplitImages, settings: RefineSettings, run: Run) -> Trained:
    """Train from the pretrained weights. Raises ConfigError, InferenceError, MissingExtra."""
    with seeded_weights(settings.seed):
        body = Body(from_weights(settings, images.size), images, run)
        objective = Refinement(body, settings)
    rates = [(body.encoder, settings.lr), (objective, settings.head_lr)]
    optimiser = optimisers.adamw(rates, weight_decay=settings.weight_decay)
    training = Training(body, objective, optimiser, settings, optimisers.cosine)
    training.train()
    return Trained(encoder=body.encoder, history=tuple(training.history))


REFINE = Recipe(
    name="refine",
    summary="a pretrained encoder, trained further on its own clusters and neighbours: for a GPU",
    settings=Settings,
    train=train,
)
