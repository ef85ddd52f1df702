"""The settings of recipes. A recipe's own file has its values; here is what each setting means and may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deepmcat_trainer.grouping import FinalSettings

# A recipe that gives a value says the type again, and with it these bounds.
Count = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=2)]  # batch norm cannot train on one image
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class RecipeSettings(BaseModel):
    """What every recipe has: an encoder, a seed, and the final stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str
    seed: int = Field(default=0, ge=0)
    final: FinalSettings = FinalSettings()


class LoopSettings(RecipeSettings):
    """What the loop needs."""

    epochs: Count
    batch_size: BatchSize


class DeepClusterSettings(LoopSettings):
    """What DeepCluster's objective needs."""

    # E step: from features to pseudo-labels
    k: Annotated[int, Field(ge=2)] | None = None  # clusters; None: one in 100 images, from 32 to 1000
    pca_dim: Count
    kmeans_iterations: Count
    feature_memory_mb: Count = 4096  # features over this lie on disk, beside the checkpoint

    # M step: an epoch of classification into the pseudo-labels
    lr: Positive
    momentum: Momentum
    weight_decay: NotNegative
    head_lr: Positive
    crop_scale: tuple[Share, Share]  # share of the area that a crop has
    crop_ratio: tuple[Positive, Positive]  # its width over its height
    flip: Probability  # of a horizontal mirror image

    # Export
    embedding_dim: Count = 256  # features longer than 512 are projected to this

    @model_validator(mode="after")
    def _ranges_ascend(self) -> DeepClusterSettings:
        for low, high in (self.crop_scale, self.crop_ratio):
            if low > high:
                raise ValueError(f"a range goes from low to high, not from {low:g} to {high:g}")
        return self
