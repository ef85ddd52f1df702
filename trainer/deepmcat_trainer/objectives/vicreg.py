"""VICReg's objective: two augmented views of an image get the same embedding. No clusters, no labels of any kind.

    images ─ augment twice ─► encoder ─► expander ─► losses.vicreg

The expander is thrown away: clustering is the final stage's business alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepmcat_trainer import losses, monitor
from deepmcat_trainer.augment import Views
from deepmcat_trainer.body import Body
from deepmcat_trainer.objectives.layers import mlp
from deepmcat_trainer.objectives.objective import Epoch, Loss, Objective
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import VicregSettings

Ints = npt.NDArray[np.int64]


class Vicreg(Objective):
    """The expander is its state."""

    def __init__(self, body: Body, settings: VicregSettings) -> None:
        """Draws the expander's weights from torch's generator."""
        super().__init__()
        self.body = body
        self.settings = settings
        self.views = Views(settings.augmentation, flip=settings.flip)
        width = settings.expander
        self.expander = mlp(body.encoder.backbone.dim, width, width, width)

    def begin_epoch(self, epoch: int) -> Epoch:
        """Every image once."""
        rng = np.random.default_rng(derive(self.settings.seed, Use.SAMPLER, epoch))
        order = rng.permutation(len(self.body.images))
        return Epoch(order=order, health=monitor.sample_health(self.body.sample()))

    def loss(self, rows: Ints) -> Loss:
        """Of two views of each image."""
        pixels = self.views.of(self.body.images.batch(rows), 2)  # (2 B, 1, S, S)
        with self.body.autocast():
            expanded = self.expander(self.body.encoder.features(pixels))  # (2 B, E)
        loss = losses.vicreg(*expanded.chunk(2))
        return Loss(loss, loss)
