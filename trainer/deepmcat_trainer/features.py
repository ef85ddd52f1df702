"""Images of a split on their way through an encoder: streamed in batches, with progress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepmcat_core.engine import LARGEST_BATCH, Engine
from deepmcat_trainer.progress import progress

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

BATCH = 256
DEVICE_SHARE = 0.4  # of a GPU's free memory that images may take; the rest is for the encoder


class SplitImages:
    """The images of one split, on the encoder's device: kept there where they fit, else sent batch by batch."""

    def __init__(self, images: Pixels, indices: Ints, device: str) -> None:
        """images: (N, S, S), may be memory-mapped. indices: rows of the split, whose order is the split's order."""
        self.device = torch.device(device)
        self._images = images
        self._indices = indices
        self._resident: Tensor | None = None
        if self.device.type == "cuda" and self._fit_on_device():
            self._resident = torch.from_numpy(np.ascontiguousarray(images[indices])).to(self.device)

    def __len__(self) -> int:
        """The number of images in the split."""
        return len(self._indices)

    @property
    def size(self) -> int:
        """The side of an image, S."""
        return int(self._images.shape[1])

    def batch(self, rows: Ints) -> Tensor:
        """The images at positions `rows` of the split: uint8 (B, 1, S, S) on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self.device)][:, None]
        pixels = np.ascontiguousarray(self._images[self._indices[rows]])
        return torch.from_numpy(pixels)[:, None].to(self.device)

    def batches(self, part: slice) -> Iterator[tuple[slice, Tensor]]:
        """The images of `part` in order, with their places in it, in batches that the device is fastest with."""
        size = LARGEST_BATCH[self.device.type]
        for start in range(part.start, part.stop, size):
            rows = np.arange(start, min(start + size, part.stop))
            yield slice(start - part.start, start - part.start + len(rows)), self.batch(rows)

    def _fit_on_device(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self.device)
        return len(self._indices) * self.size**2 < DEVICE_SHARE * free


def embed(
    engine: Engine,
    images: Pixels,
    indices: Ints,
    *,
    description: str,
    batch_size: int = BATCH,
    out: Floats | None = None,
) -> Floats:
    """Embeddings (n, D) of the images at `indices`, with a progress bar where there are any.

    images: (N, S, S) uint8, may be memory-mapped. out: where they go, of a feature_store for instance; None: memory.
    """
    embeddings = np.empty((len(indices), engine.dim), dtype=np.float32) if out is None else out
    if len(indices) == 0:
        return embeddings
    with progress(description, total=len(indices)) as advance:
        for start in range(0, len(indices), batch_size):
            rows = indices[start : start + batch_size]
            embeddings[start : start + len(rows)] = engine.embed(np.ascontiguousarray(images[rows])[:, None])
            advance(len(rows))
    return embeddings


def evenly_spaced(n: int, most: int) -> Ints:
    """At most `most` positions of n, from the first to the last: all where they are few."""
    return np.linspace(0, n - 1, min(most, n)).astype(np.int64)


@contextmanager
def feature_store(n: int, dim: int, *, memory_mb: int, folder: Path) -> Iterator[Floats]:
    """Room for (n, dim) float32: in memory up to `memory_mb`, else in a file in `folder` for as long as the block.

    The file has no name: processes do not meet there, and one that is killed leaves nothing.
    """
    if n * dim * 4 <= memory_mb * 2**20:
        yield np.empty((n, dim), dtype=np.float32)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, mode="w+", dtype=np.float32, shape=(n, dim))
