"""DeepCluster as its authors published it, on VGG-16; and a small variant that trains in minutes on a CPU.

DeepMCAT (Kart et al. 2021) builds on DeepCluster (Caron et al. 2018), but its own values are not public. Every value
of `deepmcat2021` is therefore a DeepCluster reference default (github.com/facebookresearch/deepcluster), and not "the
paper's"; only k follows the number of images, because the reference's 10,000 is meant for a million of them.
"""

from __future__ import annotations

from deepmcat_trainer import optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.encoders import from_scratch, projected, seeded_weights
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.loop import Training
from deepmcat_trainer.objectives.classification import Classification
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import (
    BatchSize,
    Count,
    DeepClusterSettings,
    Momentum,
    NotNegative,
    Positive,
    Probability,
    Share,
)


class ReferenceSettings(DeepClusterSettings):
    """DeepCluster reference defaults."""

    encoder: str = "vgg16bn-sobel"
    epochs: Count = 200
    pca_dim: Count = 256
    kmeans_iterations: Count = 20
    batch_size: BatchSize = 256
    lr: Positive = 0.05
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 1e-5
    head_lr: Positive = 0.05
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Probability = 0.5


class SmallSettings(ReferenceSettings):
    """The same method at a size for two CPU cores, where few epochs have to do.

    Small batches stay in a core's cache, and make many steps of an epoch; the head, new each epoch, needs a higher
    rate to be of use within it.
    """

    encoder: str = "small-vgg-sobel"
    epochs: Count = 5
    pca_dim: Count = 64
    batch_size: BatchSize = 32
    lr: Positive = 0.02
    head_lr: Positive = 0.2


def train(images: SplitImages, settings: DeepClusterSettings, run: Run) -> Trained:
    """Train from random weights, then project long features. Raises ConfigError, InferenceError."""
    with seeded_weights(settings.seed):
        encoder = from_scratch(settings, images.size)
    body = Body(encoder, images, run)
    optimiser = optimisers.sgd(
        [encoder], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    training = Training(body, Classification(body, settings), optimiser, settings)
    training.train()
    return Trained(encoder=projected(body, settings), history=tuple(training.history))


DEEPMCAT2021 = Recipe(
    name="deepmcat2021",
    summary="DeepCluster with its reference defaults, VGG-16 from scratch: hours on a GPU",
    settings=ReferenceSettings,
    train=train,
)
DEEPMCAT2021_SMALL = Recipe(
    name="deepmcat2021-small",
    summary="the same method with a small encoder: minutes on a CPU",
    settings=SmallSettings,
    train=train,
)
