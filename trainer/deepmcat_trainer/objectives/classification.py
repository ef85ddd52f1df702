"""DeepCluster's objective (Caron et al. 2018): classify augmented images into the clusters of their features.

begin_epoch (E step): embed all images → PCA-whitening → L2 → k-means: the clusters are the labels; a new head
loss (M step): cross-entropy of the head on one augmented view
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from deepmcat_trainer import monitor, pseudo_labels, sampler
from deepmcat_trainer.augment import CropAndFlip
from deepmcat_trainer.body import Body
from deepmcat_trainer.features import feature_store
from deepmcat_trainer.objectives.objective import Clusters, Epoch, Loss, Objective
from deepmcat_trainer.pseudo_labels import PseudoLabels
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import DeepClusterSettings

Ints = npt.NDArray[np.int64]


class Classification(Objective):
    """Labels of the last epoch are its state; the head lives for an epoch, because cluster numbers do."""

    labels: torch.Tensor

    def __init__(self, body: Body, settings: DeepClusterSettings) -> None:
        super().__init__()
        self.body = body
        self.settings = settings
        n = len(body.images)
        self.k = min(settings.k or pseudo_labels.default_k(n), n)
        self.augment = CropAndFlip(
            body.images.size, scale=settings.crop_scale, ratio=settings.crop_ratio, flip=settings.flip
        )
        self.register_buffer("labels", torch.full((n,), -1, dtype=torch.int64))
        self._head: _Head | None = None

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """The head's own."""
        return () if self._head is None else (self._head.optimiser,)

    def begin_epoch(self, epoch: int) -> Epoch:
        """E step: a cluster for every image, from its features without augmentation; and a head for the clusters."""
        pseudo = self.cluster(epoch)
        previous = self.labels.cpu().numpy() if epoch > 1 else None
        self.labels = torch.from_numpy(pseudo.labels).to(self.body.device)
        self._head = _Head(self.body, self.k, self.settings)
        rng = np.random.default_rng(derive(self.settings.seed, Use.SAMPLER, epoch))
        return Epoch(
            order=sampler.uniform_over_clusters(pseudo.labels, rng),
            health=monitor.health(pseudo.pca),
            clusters=Clusters(k=self.k, labels=pseudo.labels, previous=previous),
            chance=math.log(self.k),
        )

    def cluster(self, epoch: int) -> PseudoLabels:
        """Embed all images, each process its part, and cluster what the PCA makes of them."""
        n, dim = self.body.part.stop - self.body.part.start, self.body.encoder.backbone.dim
        folder = self.body.run.folder
        with feature_store(n, dim, memory_mb=self.settings.feature_memory_mb, folder=folder) as features:
            self.body.embed_part(features, f"epoch {epoch}: embedding")  # (n, F)
            return pseudo_labels.assign(
                features,
                k=self.k,
                pca_dim=self.settings.pca_dim,
                iterations=self.settings.kmeans_iterations,
                seed=derive(self.settings.seed, Use.KMEANS, epoch),
                device=self.body.device,
                world=self.body.run.world,
            )

    def loss(self, rows: Ints) -> Loss:
        """Cross-entropy of one augmented view of each image."""
        assert self._head is not None
        pixels = self.augment(self.body.images.batch(rows))  # (B, 1, S, S)
        with self.body.autocast():
            logits = self._head.linear(F.relu(self.body.encoder.features(pixels)))  # (B, K)
            loss = F.cross_entropy(logits, self.labels[torch.from_numpy(rows).to(self.body.device)])
        return Loss(loss, loss)


class _Head:
    """A linear classifier with an optimiser of its own. No module: its weights are no state of the run."""

    def __init__(self, body: Body, k: int, settings: DeepClusterSettings) -> None:
        linear = nn.Linear(body.encoder.backbone.dim, k)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.linear = linear.to(body.device)
        self.optimiser = torch.optim.SGD(
            self.linear.parameters(), lr=settings.head_lr, weight_decay=settings.weight_decay
        )
