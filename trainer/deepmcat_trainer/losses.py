"""Losses without labels: variance, invariance, covariance (VICReg; Bardes, Ponce and LeCun 2022, arXiv:2105.04906).

Two embeddings of the same thing shall agree (invariance), each dimension shall vary over a batch (variance), and no
two dimensions say the same (covariance). It needs no clusters, no negative pairs and no second network.

Its statistics are of the batch, and with it comes a prior that embeddings fill space evenly, as if all kinds of image
were equally frequent (Assran et al. 2023, arXiv:2210.07277): a rare kind may lose its place to details of a frequent
one. Where clusters are known, drawing batches evenly over them (sampler.tempered) brings the data nearer to the prior.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0  # the paper's weights
_EPS = 1e-4


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    """The loss of two batches (B, D), row by row of the same images. Computed in float32."""
    a, b = a.float(), b.float()
    return INVARIANCE * F.mse_loss(a, b) + spread_out(a) + spread_out(b)


def spread_out(rows: Tensor) -> Tensor:
    """The terms of variance and covariance of one batch (B, D): what keeps embeddings from collapsing."""
    centred = rows.float() - rows.float().mean(dim=0)
    covariances = centred.T @ centred / max(1, len(rows) - 1)  # (D, D)
    variances = covariances.diagonal()
    variance = F.relu(1 - torch.sqrt(variances + _EPS)).mean()
    covariance = (covariances.square().sum() - variances.square().sum()) / rows.shape[1]
    return VARIANCE * variance + COVARIANCE * covariance


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over rows (B, K) whose target (B,) is not −1; 0 where there is none."""
    total = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp_min(1)
