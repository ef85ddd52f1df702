"""DeepCluster as its authors published it, on VGG-16; and a small variant that trains in minutes on a CPU.

DeepMCAT (Kart et al. 2021) builds on DeepCluster (Caron et al. 2018), but its own values are not public. Every value
of `deepmcat2021` is therefore a DeepCluster reference default (github.com/facebookresearch/deepcluster), and not "the
paper's"; only k follows the number of images, because the reference's 10,000 is meant for a million of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from deepmcat_core.encoder import Encoder, build_encoder, parse_encoder
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer import optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.features import SplitImages, feature_store
from deepmcat_trainer.loop import Training
from deepmcat_trainer.objectives.classification import Classification
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.seeds import Use, derive
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

PROJECT_ABOVE = 512
"""Features longer than this are projected for export: 4096 of them make each embedding 16 KB and centroids 16 MB."""


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(settings.seed, Use.WEIGHTS))
        encoder = build_encoder(encoder_spec(settings.encoder, images.size))
    body = Body(encoder, images, run)
    optimiser = optimisers.sgd(
        [encoder], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    training = Training(body, Classification(body, settings), optimiser, settings)
    training.train()
    return Trained(encoder=projected(body, settings), history=tuple(training.history))


def encoder_spec(text: str, size: int) -> EncoderSpec:
    """The encoder that a person named, for images of `size`: the small one works at about 64 px."""
    spec = parse_encoder(text)
    return replace(spec, options={"shrink": max(1, size // 64)}) if spec.name == "small-vgg-sobel" else spec


def projected(body: Body, settings: DeepClusterSettings) -> Encoder:
    """The trained encoder; where its features are long, with their first principal components as its projection.

    The components are not whitened: whitening makes noise as loud as signal and costs 13 to 28 points of purity in
    the final clusters. Within the E step it stays, because the reference has it.
    """
    encoder, run = body.encoder, body.run
    n, dim = len(body.images), encoder.backbone.dim
    if dim <= PROJECT_ABOVE:
        return encoder
    with feature_store(n, dim, memory_mb=settings.feature_memory_mb, folder=run.folder) as features:
        body.embed(features, "projection: embedding")
        pca = Pca.fit(features, settings.embedding_dim, run.device)
    weight = pca.components.float().cpu()  # (D, F)
    bias = -(pca.components @ pca.mean).float().cpu()  # (D,)
    return encoder.projected(weight.numpy(), bias.numpy())


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
