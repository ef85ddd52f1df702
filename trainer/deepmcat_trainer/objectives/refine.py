"""Refining a pretrained encoder end to end, by what its own embeddings already say.

    begin_epoch: embed all images ─► final stage's grouping: pseudo-labels ─► those nearest to their cluster's centre
                                  └► nearest neighbours
    loss: an image and a random neighbour, each augmented ─┬─► both classified by cosine to the prototypes of the labels
                                                           └► expander ─► VICReg between the two

Images far from their cluster's centre are the ones that clustering gets wrong, so they teach no label at first: the
share that does grows from epoch to epoch (a curriculum). They take part as neighbours from the start. Labels are fine
clusters unless settings say otherwise: where two kinds share a suggested category, it would teach that they are one;
and what fine clusters hold apart for nothing, neighbours in one another's clusters bring together.

The grouping is the final stage's with its default settings: those that a person gives for the final stage may change
until it runs, and would make another run of this one.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from deepmcat_trainer import losses, monitor, pseudo_labels, sampler
from deepmcat_trainer.augment import Views
from deepmcat_trainer.body import Body
from deepmcat_trainer.features import feature_store
from deepmcat_trainer.grouping import FinalSettings, group
from deepmcat_trainer.neighbours import nearest_neighbours
from deepmcat_trainer.objectives.layers import mlp
from deepmcat_trainer.objectives.objective import Clusters, Epoch, Loss, Objective
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import RefineSettings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

VIEWS = 2  # an image and its neighbour


class Refinement(Objective):
    """The expander and what the last grouping said are its state.

    labels: (N,) pseudo-labels. previous: (N,) those of the grouping before. ranks: (N,) from 0, the nearest to its fine
    cluster's centre, to below 1. neighbours: (N, k). prototypes: (K, D) unit rows, of which the first are in use.
    """

    labels: torch.Tensor
    previous: torch.Tensor
    ranks: torch.Tensor
    neighbours: torch.Tensor
    prototypes: torch.Tensor

    def __init__(self, body: Body, settings: RefineSettings) -> None:
        """Draws the expander's weights from torch's generator."""
        super().__init__()
        self.body = body
        self.settings = settings
        n, dim = len(body.images), body.encoder.dim
        self.views = Views(settings.augmentation, flip=settings.flip)
        self.expander = mlp(dim, settings.expander, settings.expander)
        self.register_buffer("labels", torch.full((n,), -1, dtype=torch.int64))
        self.register_buffer("previous", torch.full((n,), -1, dtype=torch.int64))
        self.register_buffer("ranks", torch.zeros(n))
        self.register_buffer("neighbours", torch.zeros(n, min(settings.neighbours, n - 1), dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(FinalSettings().clusters_for(n), dim))
        self._targets = self.labels
        self._near: Ints = self.neighbours.numpy()

    def train(self, mode: bool = True) -> Refinement:
        """Batch norm of the encoder keeps the statistics that it was pretrained with, where settings say so.

        A batch is drawn evenly over clusters, and its statistics are not those of the archive that is embedded.
        """
        super().train(mode)
        if self.settings.freeze_batch_norm:
            for module in self.body.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def begin_epoch(self, epoch: int) -> Epoch:
        """Group anew where it is time to, and take as targets the labels of images that are near enough."""
        if (epoch - 1) % self.settings.regroup_every == 0:
            self._regroup(epoch)
        labels = self.labels.cpu().numpy()
        k = int(labels.max()) + 1
        self._near = self.neighbours.cpu().numpy()
        self._targets = torch.where(self.ranks < self._confident(epoch), self.labels, -1)
        rng = np.random.default_rng(derive(self.settings.seed, Use.SAMPLER, epoch))
        return Epoch(
            order=sampler.tempered(labels, self.settings.temper, rng),
            health=monitor.sample_health(self.body.sample()),
            clusters=Clusters(k=k, labels=labels, previous=self._previous()),
            chance=math.log(k) if k > 1 else None,
        )

    def loss(self, rows: Ints) -> Loss:
        """Of each image and a random one of its neighbours, each augmented."""
        drawn = torch.randint(self._near.shape[1], (len(rows),)).numpy()  # on the CPU: a GPU need not be waited for
        both = np.concatenate([rows, self._near[rows, drawn]])  # (2 B,)
        pixels = self.views.of(self.body.images.batch(both), 1)  # (2 B, 1, S, S)
        with self.body.autocast():
            embedded = self.body.encoder.projection(self.body.encoder.features(pixels))  # (2 B, D)
            expanded = self.expander(embedded)  # (2 B, E)
        logits = F.normalize(embedded.float()) @ self.prototypes.T / self.settings.temperature
        unused = torch.arange(len(self.prototypes), device=self.body.device) > self.labels.max()
        classified = losses.cross_entropy(
            logits.masked_fill(unused, -torch.inf), self._targets[torch.from_numpy(both).to(self.body.device)]
        )
        return Loss(classified + self.settings.vicreg_weight * losses.vicreg(*expanded.chunk(VIEWS)), classified)

    def _regroup(self, epoch: int) -> None:
        n, settings, world = len(self.body.images), self.settings, self.body.run.world
        folder = self.body.run.folder
        with feature_store(n, self.body.encoder.dim, memory_mb=settings.feature_memory_mb, folder=folder) as embeddings:
            self.body.apply(self._embedded, np.arange(n), embeddings, f"epoch {epoch}: embedding")  # (N, D) unit rows
            found = self._found(embeddings, epoch) if world.first else (None,) * 4
        labels, ranks, neighbours, prototypes = (torch.from_numpy(world.tell(part)) for part in found)
        self.previous.copy_(self.labels)
        self.labels.copy_(labels)
        self.ranks.copy_(ranks)
        self.neighbours.copy_(neighbours)
        self.prototypes.zero_()
        self.prototypes[: len(prototypes)] = prototypes.to(self.body.device)

    def _found(self, embeddings: Floats, epoch: int) -> tuple[Ints, Floats, Ints, Floats]:
        """Labels, ranks, neighbours and prototypes, as the buffers have them."""
        settings, device = self.settings, self.body.device
        seed = derive(settings.seed, Use.KMEANS, epoch)
        grouping = group(embeddings, FinalSettings(seed=seed), device=device)
        near = nearest_neighbours(embeddings, settings.neighbours, device=device, seed=seed)
        fine = grouping.fine.assignment
        labels = fine if settings.targets == "fine" else grouping.tree.cut(grouping.cut.k)[fine]
        ranks = pseudo_labels.distance_ranks(fine, grouping.fine.distances)
        prototypes = _means(embeddings, np.where(ranks < self._confident(epoch), labels, -1))
        return np.asarray(labels, dtype=np.int64), ranks, near.indices.astype(np.int64), prototypes

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.body.encoder(pixels).float())  # to float32's precision, also where bfloat16 ran

    def _previous(self) -> Ints | None:
        return self.previous.cpu().numpy() if bool((self.previous >= 0).any()) else None

    def _confident(self, epoch: int) -> float:
        """The share of each cluster that teaches its label in this epoch."""
        first, last = self.settings.confident
        return first + (last - first) * (epoch - 1) / max(1, self.settings.epochs - 1)


def _means(embeddings: Floats, labels: Ints) -> Floats:
    """The mean direction of the rows of each label 0 … K−1; rows labelled −1 have no say. (K, D)."""
    k = int(labels.max()) + 1
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(k + 1))
    sums = [embeddings[order[a:b]].sum(axis=0, dtype=np.float64) for a, b in pairwise(starts)]
    return pseudo_labels.normalised(np.asarray(sums, dtype=np.float32))
