"""No network at all: pixels, and histograms of edges on two grids, as views (core backbones/gradients.py).

What there is where no pretrained weights are, or are allowed. Nothing but principal components is learned.
"""

from __future__ import annotations

from deepmcat_core.encoder import parse_encoder, pretrained
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.recipes.stages import ViewsSettings, on_images
from deepmcat_trainer.run import Run


class GradientsSettings(ViewsSettings):
    """As recipe stages, with features that nobody trained."""

    encoder: str = "gradients"


def train(images: SplitImages, settings: GradientsSettings, run: Run) -> Trained:
    """Learn the principal components of each view from `images`. Raises ConfigError, InferenceError."""
    if settings.encoder != "gradients":
        raise ConfigError(f"recipe gradients has one encoder, 'gradients', not {settings.encoder!r}; try recipe stages")
    return on_images(pretrained(parse_encoder(settings.encoder)), images, settings, run)


GRADIENTS = Recipe(
    name="gradients",
    summary="pixels and edges, no network and no weights: a minute on a CPU",
    settings=GradientsSettings,
    train=train,
)
