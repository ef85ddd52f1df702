"""A pretrained encoder read at several depths: no training beyond principal components, only the final stage.

The last layer of a network trained on photographs has been told to forget what does not tell photographs apart. Its
middle stages have not: they keep texture and, on a grid of quarters, position, which is much of what tells medical
images apart. Each stage becomes a view of its own: centred, its first principal components, unit length. Views make
their errors in different places, and the final stage lets all of them have a say in how clusters merge (walk.py).

The components are not whitened: whitening makes noise as loud as signal.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deepmcat_core.backbones.pooling import Pool
from deepmcat_core.encoder import Encoder, parse_encoder, pretrained
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.body import Body
from deepmcat_trainer.features import SplitImages, evenly_spaced
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import Count, RecipeSettings

Floats = npt.NDArray[np.float32]


class ViewsSettings(RecipeSettings):
    """view_dim: components that each view keeps. pca_images: of the fit split, evenly spaced, they are learned from."""

    view_dim: Count = 128
    pca_images: Count = 4096


class StagedSettings(RecipeSettings):
    """stages: of the network, 1 to 7, that features are read after; pool: how each is pooled."""

    encoder: str = "efficientnet-lite0"
    stages: tuple[int, ...] = Field(default=(4, 5, 6, 7), min_length=1)
    pool: Pool = "grid2"


class StagesSettings(StagedSettings, ViewsSettings):
    """An encoder read at several depths, each of them a view."""


def train(images: SplitImages, settings: StagesSettings, run: Run) -> Trained:
    """Learn the principal components of each view from `images`. Raises ConfigError, MissingExtra, InferenceError."""
    return on_images(encoder(settings), images, settings, run)


def on_images(encoder: Encoder, images: SplitImages, settings: ViewsSettings, run: Run) -> Trained:
    """`encoder` with views learned from `images`. Raises InferenceError."""
    body = Body(encoder, images, run, fewest=1)
    rows = sample(len(images), settings)
    features = np.empty((len(rows), body.encoder.backbone.dim), dtype=np.float32)
    body.apply(body.encoder.features, rows, features, "views: embedding")
    return Trained(encoder=viewed(body.encoder, features, settings, run))


def encoder(settings: StagedSettings) -> Encoder:
    """The pretrained encoder that reads these stages. Raises ConfigError, MissingExtra."""
    spec = parse_encoder(settings.encoder)
    if spec.name != "efficientnet-lite0":
        raise ConfigError(f"this recipe reads the stages of efficientnet-lite0, not of {spec.name!r}; try frozen")
    options = {**spec.options, "pool": settings.pool, "stages": list(settings.stages)}
    return pretrained(replace(spec, options=options))


def sample(n: int, settings: ViewsSettings) -> npt.NDArray[np.int64]:
    """The images of n that the components are learned from: all where they are few."""
    return evenly_spaced(n, settings.pca_images)


def viewed(encoder: Encoder, features: Floats, settings: ViewsSettings, run: Run) -> Encoder:
    """`encoder` with the principal components of each part of the features (n, F) as its views."""
    parts = np.split(features, np.cumsum(encoder.backbone.parts)[:-1], axis=1)
    affine = [Pca.fit(part, settings.view_dim, run.device).affine() for part in parts]
    return encoder.viewed([weight for weight, _ in affine], [bias for _, bias in affine])


STAGES = Recipe(
    name="stages",
    summary="a pretrained encoder read at four depths, no training: minutes on a CPU",
    settings=StagesSettings,
    train=train,
)
