"""The settings of recipes. A recipe's own file has its values; here is what each setting means and may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deepmcat_core.backbones.pooling import Pool
from deepmcat_trainer.augment import Augmentation
from deepmcat_trainer.grouping import FinalSettings

# A recipe that gives a value says the type again, and with it these bounds.
Count = Annotated[int, Field(ge=1)]
Clusters = Annotated[int, Field(ge=2)]
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
    feature_memory_mb: Count = 4096  # features over this lie on disk, beside the checkpoint
    pool: Pool | None = None  # how the encoder pools its last grid; None: as it does by itself

    def encoder_options(self) -> dict[str, Any]:
        """The options of the encoder that are set."""
        return {key: value for key in ("pool", "sobel") if (value := getattr(self, key, None)) is not None}


class ScratchSettings(LoopSettings):
    """What an encoder that starts from random weights can have besides."""

    sobel: bool | None = None  # whether it sees gradients in place of grey values; None: as it does by itself
    embedding_dim: Count = 256  # features longer than 512 are projected to this for export


class DeepClusterSettings(ScratchSettings):
    """What DeepCluster's objective needs."""

    # E step: from features to pseudo-labels
    k: Clusters | None = None  # clusters; None: one in 100 images, from 32 to 1000
    pca_dim: Count
    kmeans_iterations: Count

    # M step: an epoch of classification into the pseudo-labels
    lr: Positive
    momentum: Momentum
    weight_decay: NotNegative
    head_lr: Positive
    crop_scale: tuple[Share, Share]  # share of the area that a crop has
    crop_ratio: tuple[Positive, Positive]  # its width over its height
    flip: Probability  # of a horizontal mirror image

    @model_validator(mode="after")
    def _ranges_ascend(self) -> DeepClusterSettings:
        for low, high in (self.crop_scale, self.crop_ratio):
            if low > high:
                raise ValueError(f"a range goes from low to high, not from {low:g} to {high:g}")
        return self


class ViewSettings(LoopSettings):
    """What objectives on augmented views need: AdamW, whose rate rises for a twentieth of the run and falls to 0."""

    lr: Positive
    weight_decay: NotNegative = 1e-4
    augmentation: Augmentation = "mild"
    flip: Probability = 0.0  # of a horizontal mirror image


class VicregSettings(ViewSettings, ScratchSettings):
    """What VICReg needs besides."""

    expander: Count = 1024  # width of the three layers that the loss is taken behind


class DeepClusterV2Settings(ViewSettings, ScratchSettings):
    """What DeepCluster-v2 needs besides."""

    k: tuple[Clusters, ...] = Field(default=(64, 128, 256), min_length=1)  # prototypes of each head
    kmeans_iterations: Count = 10
    temperature: Positive = 0.1  # of the cosines to the prototypes
    hidden: Count = 512  # width of the projector's layer
    projection_dim: Count = 128
    temper: Probability = 0.5  # an image of a cluster of n is drawn with weight n^-temper
    vicreg_weight: NotNegative = 0.0  # of the variance and covariance of projections


class RefineSettings(ViewSettings):
    """What refining needs besides."""

    head_lr: Positive = 1e-3  # of the expander, which starts at random
    targets: Literal["fine", "groups"] = "fine"  # of the classification: fine clusters, or the suggested categories
    regroup_every: Count = 1  # epochs
    confident: tuple[Share, Share] = (0.5, 0.9)  # share of a cluster that teaches its label, in the first, last epoch
    neighbours: Count = 10
    temperature: Positive = 0.1  # of the cosines to the prototypes
    temper: Probability = 0.5  # an image of a cluster of n is drawn with weight n^-temper
    expander: Count = 512  # width of the two layers that VICReg is taken behind
    vicreg_weight: NotNegative = 0.04
    freeze_batch_norm: bool = True

    @model_validator(mode="after")
    def _confidence_ascends(self) -> RefineSettings:
        if self.confident[0] > self.confident[1]:
            raise ValueError(f"confident goes from low to high, not from {self.confident[0]} to {self.confident[1]}")
        return self
