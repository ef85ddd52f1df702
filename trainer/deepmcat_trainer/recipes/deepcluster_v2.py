"""DeepCluster-v2 (Caron et al. 2020): the successor of the method of `deepmcat2021`."""

from __future__ import annotations

from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.objectives.deepcluster_v2 import DeepClusterV2
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.recipes.two_views import train_from_scratch
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import BatchSize, Count, DeepClusterV2Settings, Positive


class Settings(DeepClusterV2Settings):
    """For some ten thousand images on a GPU."""

    encoder: str = "resnet18"
    epochs: Count = 100
    batch_size: BatchSize = 256
    lr: Positive = 1e-3


def train(images: SplitImages, settings: DeepClusterV2Settings, run: Run) -> Trained:
    """Train from random weights, then project long features. Raises ConfigError, InferenceError."""
    return train_from_scratch(DeepClusterV2, images, settings, run)


DEEPCLUSTER_V2 = Recipe(
    name="deepcluster-v2",
    summary="several clusterings of a memory at once, classified from two views, from scratch: for a GPU",
    settings=Settings,
    train=train,
)
