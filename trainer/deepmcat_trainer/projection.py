"""A small network over fixed features that pulls each image's nearest neighbours together.

    features (N, F) ─PCA─► inputs (N, d) ─k-NN graph─► pairs ─VICReg─► Linear, batch norm, ReLU, Linear (N, D)

A pair is an image and one of its neighbours, with inputs dropped out at random in place of augmentation. What
neighbours share stays, what tells them apart fades: a learned relative of Laplacian eigenmaps (Balestriero and LeCun
2022, arXiv:2205.11508) that also embeds images it has not seen. The loss is VICReg's (losses.py); one with negatives
would push kinds apart evenly, and its prior hurts rare ones. Of more than MOST_ROWS images so many drawn at random
train it, and a kind too rare to be drawn has no say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepmcat_core.errors import InferenceError
from deepmcat_trainer.clustering import MOST_ROWS, drawn
from deepmcat_trainer.losses import vicreg
from deepmcat_trainer.neighbours import nearest_neighbours
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.pseudo_labels import normalised
from deepmcat_trainer.run import Run
from deepmcat_trainer.seeds import Use, derive

Floats = npt.NDArray[np.float32]

WEIGHT_DECAY = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionPlan:
    """What the projection is and how it is trained; the settings of recipe `neighbours` say what each may be."""

    inputs: int
    hidden: int
    dim: int
    neighbours: int
    steps: int
    batch_size: int
    dropout: float
    lr: float
    seed: int


def train_projection(features: Floats, plan: ProjectionPlan, run: Run, *, most_rows: int = MOST_ROWS) -> nn.Sequential:
    """The trained network from raw features (B, F) to (B, D), in eval mode on the run's device.

    features: (N, F), may be memory-mapped; at most `most_rows` of them train it. The principal components, of all, are
    folded into its first layer. Raises InferenceError where the loss is not a number.
    """
    pca = Pca.fit(features, plan.inputs, run.device)
    n = len(features)
    rows = np.arange(n) if n <= most_rows else drawn(n, most_rows, derive(plan.seed, Use.SAMPLER))
    inputs, scale = _inputs(features, rows, pca)
    near = nearest_neighbours(normalised(inputs), plan.neighbours, device=run.device, seed=plan.seed).indices
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(plan.seed, Use.WEIGHTS))
        layers = nn.Linear(inputs.shape[1], plan.hidden), nn.BatchNorm1d(plan.hidden), nn.ReLU(inplace=True)
        network = nn.Sequential(*layers, nn.Linear(plan.hidden, plan.dim)).to(run.device)
        torch.manual_seed(derive(plan.seed, Use.TRAINING))
        _train(network, torch.from_numpy(inputs).to(run.device), near, plan, run)
    return _folded(network, pca, scale).eval()


def _inputs(features: Floats, rows: npt.NDArray[np.int64], pca: Pca) -> tuple[Floats, float]:
    """`rows` of the features in their principal components (n, d), and the scale.

    By it they are as long on average as a row of d normal values.
    """
    projected = np.empty((len(rows), len(pca.components)), dtype=np.float32)
    weight, mean = pca.components.float().cpu().numpy(), pca.mean.float().cpu().numpy()
    for start in range(0, len(rows), 4096):
        projected[start : start + 4096] = (features[rows[start : start + 4096]] - mean) @ weight.T
    scale = math.sqrt(projected.shape[1] / max(float(pca.variances.sum()), 1e-12))
    return projected * np.float32(scale), scale


def _train(network: nn.Module, inputs: Tensor, near: npt.NDArray[np.int32], plan: ProjectionPlan, run: Run) -> None:
    rng = np.random.default_rng(derive(plan.seed, Use.SAMPLER))
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.steps)
    size = min(plan.batch_size, len(inputs))
    with run.bar("training the projection", plan.steps) as advance:
        for _ in range(plan.steps):
            rows = rng.choice(len(inputs), size, replace=False)
            partners = near[rows, rng.integers(0, near.shape[1], size)]
            pairs = torch.from_numpy(np.concatenate([rows, partners])).to(inputs.device)
            a, b = network(F.dropout(inputs[pairs], plan.dropout)).chunk(2)
            loss = vicreg(a, b)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            advance(1)
    if not math.isfinite(float(loss.detach())):
        raise InferenceError("the loss of the projection is not a number: try a lower learning rate (lr)")


def _folded(network: nn.Sequential, pca: Pca, scale: float) -> nn.Sequential:
    """The same network over raw features."""
    first = network[0]
    assert isinstance(first, nn.Linear)
    components = pca.components.to(first.weight.dtype) * scale  # (d, F)
    weight = first.weight.detach() @ components  # (H, F)
    folded = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.device)
    folded.load_state_dict({"weight": weight, "bias": first.bias.detach() - weight @ pca.mean.to(weight.dtype)})
    return nn.Sequential(folded, *list(network)[1:])
