"""Principal components of many features, streamed, in float64, the same whatever the number of threads.

faiss's PCA is not deterministic with threads (faiss#983), and it samples; ours sees every row twice (mean, then
covariance) in chunks, so that the features may lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from deepmcat_trainer.distributed import ALONE, World

Floats = npt.NDArray[np.float32]

CHUNK_ROWS = 4096
RANK_TOLERANCE = 1e-10  # components below this share of the largest variance are rounding, and would be blown up


@dataclass(frozen=True, slots=True, kw_only=True)
class Pca:
    """mean: (F,). components: (d, F), orthonormal rows, largest variance first. variances: (d,). All float64.

    spectrum: (F,) all variances, descending. direction: length of the mean of the *unit* rows, 1 where all features
    point the same way.
    """

    mean: torch.Tensor
    components: torch.Tensor
    variances: torch.Tensor
    spectrum: npt.NDArray[np.float64]
    direction: float

    @classmethod
    def fit(
        cls,
        features: Floats,
        dim: int,
        device: str = "cpu",
        *,
        chunk_rows: int = CHUNK_ROWS,
        world: World = ALONE,
    ) -> Pca:
        """At most `dim` components; fewer where the rank is lower.

        features: (N, F), of each process of `world` its own part; the components are those of all of them together.
        """
        mean, direction = _means(features, device, chunk_rows, world)
        covariance = _covariance(features, mean, device, chunk_rows, world)  # (F, F)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        variances, vectors = variances.flip(0).clamp_min(0), vectors.flip(1)
        rank = int((variances > RANK_TOLERANCE * variances[0]).sum())
        kept = max(1, min(dim, rank))
        return cls(
            mean=mean,
            components=_signed(vectors[:, :kept].T),
            variances=variances[:kept],
            spectrum=variances.cpu().numpy(),
            direction=direction,
        )

    def affine(self) -> tuple[Floats, Floats]:
        """The projection onto the components, not whitened, as features @ weight.T + bias: (d, F) and (d,)."""
        weight = self.components.float().cpu().numpy()
        return weight, -(self.components @ self.mean).float().cpu().numpy()

    def whiten(self, features: Floats) -> Floats:
        """Features (N, F) in d uncorrelated dimensions of variance 1: (N, d)."""
        scale = self.variances.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
        whitened = np.empty((len(features), len(self.components)), dtype=np.float32)
        for start, chunk in _chunks(features, str(self.mean.device), CHUNK_ROWS):
            projected = (chunk - self.mean) @ self.components.T * scale
            whitened[start : start + len(chunk)] = projected.float().cpu().numpy()
        return whitened


def _means(features: Floats, device: str, chunk_rows: int, world: World) -> tuple[torch.Tensor, float]:
    """The mean row, and the length of the mean unit row."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    units = torch.zeros_like(total)
    for _, chunk in _chunks(features, device, chunk_rows):
        total += chunk.sum(0)
        units += torch.nn.functional.normalize(chunk, dim=1).sum(0)
    _, n = world.span(len(features))
    return world.sum(total) / n, float(world.sum(units).norm()) / n


def _covariance(features: Floats, mean: torch.Tensor, device: str, chunk_rows: int, world: World) -> torch.Tensor:
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=device)
    for _, chunk in _chunks(features, device, chunk_rows):
        centred = chunk - mean
        covariance += centred.T @ centred
    _, n = world.span(len(features))
    return world.sum(covariance) / n


def _chunks(features: Floats, device: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(features), rows):
        chunk = np.ascontiguousarray(features[start : start + rows], dtype=np.float64)
        yield start, torch.from_numpy(chunk).to(device)


def _signed(components: torch.Tensor) -> torch.Tensor:
    """An eigenvector's sign is arbitrary: make the entry of largest magnitude positive."""
    largest = components.abs().argmax(dim=1, keepdim=True)
    return (components * components.gather(1, largest).sign()).contiguous()
