"""VICReg (Bardes, Ponce and LeCun 2022): the objective here that makes no clusters while it trains.

For telling apart what the clustering in training does: encoder, augmentation and final stage can be the same as those
of `deepcluster-v2`. It has a hidden prior of clusters of equal size (losses.py), and nothing here tempers it, because
without clusters nobody knows which images are rare.
"""

from __future__ import annotations

from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.objectives.vicreg import Vicreg
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.recipes.two_views import train_from_scratch
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import BatchSize, Count, Positive, VicregSettings


class Settings(VicregSettings):
    """For some ten thousand images on a GPU."""

    encoder: str = "resnet18"
    epochs: Count = 100
    batch_size: BatchSize = 256
    lr: Positive = 1e-3


def train(images: SplitImages, settings: VicregSettings, run: Run) -> Trained:
    """Train from random weights, then project long features. Raises ConfigError, InferenceError."""
    return train_from_scratch(Vicreg, images, settings, run)


VICREG = Recipe(
    name="vicreg",
    summary="two views of an image get one embedding, from scratch and without clusters in training: for a GPU",
    settings=Settings,
    train=train,
)
