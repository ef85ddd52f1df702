"""A pretrained encoder as it is: no training, only the final stage.

Its last layer, that is: recipe stages reads the middle ones, which keep more of what tells medical images apart.
"""

from __future__ import annotations

from dataclasses import replace

from deepmcat_core.backbones.pooling import Pool
from deepmcat_core.encoder import parse_encoder, pretrained
from deepmcat_trainer.body import to_device
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.recipes.base import Recipe, Trained
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import RecipeSettings


class FrozenSettings(RecipeSettings):
    """encoder: one that has pretrained weights: efficientnet-lite0, or hf:FOLDER for any local transformers model.

    pool: how it pools its last grid; None: as it does by itself.
    """

    encoder: str = "efficientnet-lite0"
    pool: Pool | None = None


def train(images: SplitImages, settings: FrozenSettings, run: Run) -> Trained:
    """Take the encoder; `images` are not looked at. Raises ConfigError, MissingExtra."""
    spec = parse_encoder(settings.encoder)
    if settings.pool is not None:
        spec = replace(spec, options={**spec.options, "pool": settings.pool})
    return Trained(encoder=to_device(pretrained(spec), run.device))


FROZEN = Recipe(
    name="frozen", summary="a pretrained encoder, no training: minutes on a CPU", settings=FrozenSettings, train=train
)
