"""DeepCluster-v2 (Caron et al. 2020, appendix of arXiv:2006.09882), written from its description.

    begin_epoch: a memory of the projections of the epoch before ─ spherical k-means, once for each K ─► prototypes
    loss: each of two views is classified by its cosine to the prototypes, which are frozen for the epoch

Against DeepCluster: no pass over all images for features, no head that learns anew each epoch. Clusters may have any
size: nothing here asks for equal ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from deepmcat_trainer import losses, monitor, sampler
from deepmcat_trainer.augment import Views
from deepmcat_trainer.body import Body
from deepmcat_trainer.clustering import kmeans
from deepmcat_trainer.objectives.layers import mlp
from deepmcat_trainer.objectives.objective import Clusters, Epoch, Loss, Objective
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import DeepClusterV2Settings

Ints = npt.NDArray[np.int64]

VIEWS = 2
FEWEST_IMAGES_PER_CLUSTER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """prototypes: (K, D) unit rows, frozen. labels: (N,) the prototype nearest to each image's memory."""

    prototypes: torch.Tensor
    labels: torch.Tensor


class DeepClusterV2(Objective):
    """Projector, memory and the last labels are its state.

    memory: (2, N, D) the projection of the view of each image that was seen last. stale: (N,) which of them are not of
    the last epoch: the sampler leaves images of large clusters out, and these are projected again, as they are.
    """

    memory: torch.Tensor
    stale: torch.Tensor
    labels: torch.Tensor

    def __init__(self, body: Body, settings: DeepClusterV2Settings) -> None:
        """Draws the projector's weights from torch's generator."""
        super().__init__()
        self.body = body
        self.settings = settings
        n, dim = len(body.images), settings.projection_dim
        self.ks = [min(k, max(2, n // FEWEST_IMAGES_PER_CLUSTER)) for k in settings.k]
        self.views = Views(settings.augmentation, flip=settings.flip)
        self.projector = mlp(body.encoder.backbone.dim, settings.hidden, dim)
        self.register_buffer("memory", torch.zeros(VIEWS, n, dim))
        self.register_buffer("stale", torch.ones(n, dtype=torch.bool))
        self.register_buffer("labels", torch.full((n,), -1, dtype=torch.int64))
        self._heads: list[Head] = []

    def begin_epoch(self, epoch: int) -> Epoch:
        """Prototypes from the memory, and an order tempered by the sizes of the first head's clusters."""
        health = monitor.sample_health(self.body.sample())
        self._refresh(epoch)
        self._heads = [self._cluster(i, k, epoch) for i, k in enumerate(self.ks)]
        self.stale.fill_(True)
        previous = self.labels.cpu().numpy() if epoch > 1 else None
        self.labels = self._heads[0].labels
        labels = self.labels.cpu().numpy()
        rng = np.random.default_rng(derive(self.settings.seed, Use.SAMPLER, epoch))
        counts = [len(head.prototypes) for head in self._heads]
        return Epoch(
            order=sampler.tempered(labels, self.settings.temper, rng),
            health=health,
            clusters=Clusters(k=counts[0], labels=labels, previous=previous),
            chance=sum(math.log(k) for k in counts) / len(counts),
        )

    def loss(self, rows: Ints) -> Loss:
        """Cross-entropy of both views over all heads, and where settings say so the spread of the projections."""
        pixels = self.views.of(self.body.images.batch(rows), VIEWS)  # (2 B, 1, S, S)
        with self.body.autocast():
            projected = self.projector(self.body.encoder.features(pixels)).float()  # (2 B, D)
        unit = F.normalize(projected)
        self._remember(rows, unit.detach())
        at = torch.from_numpy(rows).to(self.body.device)
        entropies = [
            losses.cross_entropy(unit @ head.prototypes.T / self.settings.temperature, head.labels[at].repeat(VIEWS))
            for head in self._heads
        ]
        classified = torch.stack(entropies).mean()
        if self.settings.vicreg_weight == 0:
            return Loss(classified, classified)
        spread = sum(losses.spread_out(view) for view in projected.chunk(VIEWS))
        return Loss(classified + self.settings.vicreg_weight * spread, classified)

    def _cluster(self, i: int, k: int, epoch: int) -> Head:
        """The clusters of one view's memory: heads take turns."""
        world = self.body.run.world
        clusters = None
        if world.first:
            memory = self.memory[i % VIEWS].cpu().numpy()
            seed = derive(self.settings.seed + i, Use.KMEANS, epoch)
            niter = self.settings.kmeans_iterations
            clusters = kmeans(memory, k, niter=niter, nredo=1, seed=seed, device=self.body.device)
        prototypes = world.tell(clusters.centroids if clusters else None)
        labels = world.tell(clusters.assignment if clusters else None)
        return Head(
            prototypes=torch.from_numpy(prototypes).to(self.body.device),
            labels=torch.from_numpy(labels).to(self.body.device),
        )

    def _refresh(self, epoch: int) -> None:
        """Project what the last epoch did not see, in any process; before the first one that is everything."""
        self._share_memory()
        rows = np.flatnonzero(self.stale.cpu().numpy())
        projected = np.empty((len(rows), self.memory.shape[2]), dtype=np.float32)
        self.eval()
        self.body.apply(self._projected, rows, projected, f"epoch {epoch}: projecting")
        at = torch.from_numpy(rows).to(self.body.device)
        self.memory[:, at] = torch.from_numpy(projected).to(self.body.device)

    def _projected(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projector(self.body.encoder.features(pixels)).float())

    def _share_memory(self) -> None:
        """Each process remembers the images that it saw; from here on all remember the same."""
        world = self.body.run.world
        if world.size > 1:
            fresh = (~self.stale).to(self.memory.dtype)
            self.memory.mul_(fresh[:, None])
            seen = world.sum(fresh)
            world.sum(self.memory)
            self.memory.div_(seen.clamp_min(1)[:, None])
            self.stale = seen == 0

    def _remember(self, rows: Ints, unit: torch.Tensor) -> None:
        """Keep the projections (2 B, D); of an image that is twice in a batch the first."""
        unique, first = np.unique(rows, return_index=True)
        at, of = (torch.from_numpy(indices).to(self.body.device) for indices in (unique, first))
        self.memory[:, at] = unit.view(VIEWS, len(rows), -1)[:, of]
        self.stale[at] = False
