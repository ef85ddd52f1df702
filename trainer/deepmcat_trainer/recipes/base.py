"""What a recipe is: a name, its settings, and a function from images to a trained encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from deepmcat_core.encoder import Encoder
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.monitor import EpochReport
from deepmcat_trainer.run import Run
from deepmcat_trainer.settings import RecipeSettings

Settings = TypeVar("Settings", bound=RecipeSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An encoder on the run's device, and the reports of the epochs that made it: none where nothing was trained."""

    encoder: Encoder
    history: tuple[EpochReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Generic[Settings]):
    """A named training method. summary: what a person chooses by. settings: their type, with this recipe's values."""

    name: str
    summary: str
    settings: type[Settings]
    train: Callable[[SplitImages, Settings, Run], Trained]
