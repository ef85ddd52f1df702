"""The images of `gpu.py`: pixels, labels and splits, of a dataset or of one file that travels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SPLITS = ("fit", "calibration", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """images: (N, S, S) uint8. classes: (N,) 0 … C−1. splits: (N,) which of SPLITS."""

    images: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        return int(self.images.shape[1])

    @property
    def count(self) -> int:
        """C."""
        return len(np.unique(self.classes))

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def save(self, path: Path) -> None:
        np.savez_compressed(path, images=self.images, classes=self.classes, splits=self.splits)


def read(source: Path | None, folder: Path, images: int | None, size: int | None) -> Pack:
    """A pack, a dataset, or MedNIST prepared in `folder`; `images` of them, evenly spaced, at `size` pixels."""
    pack = _from_file(source) if source and source.suffix == ".npz" else _from_dataset(source or _mednist(folder))
    rows = np.arange(len(pack.images))
    if images is not None and images < len(rows):
        rows = _evenly(pack, images)
    pixels = _averaged(pack.images, rows, size or pack.size)
    return Pack(images=pixels, classes=pack.classes[rows], splits=pack.splits[rows])


def _evenly(pack: Pack, images: int) -> npt.NDArray[np.int64]:
    """So many rows, of each class and split its share."""
    order = np.lexsort((pack.splits, pack.classes))
    return np.sort(order[np.linspace(0, len(order) - 1, images).astype(np.int64)])


def _averaged(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    if images.shape[1] % size:
        raise SystemExit(f"images of {images.shape[1]} px cannot be averaged to {size} px")
    factor = images.shape[1] // size
    averaged = np.empty((len(rows), size, size), dtype=np.uint8)
    for i, row in enumerate(rows):
        averaged[i] = images[row].reshape(size, factor, size, factor).mean(axis=(1, 3)).round()
    return averaged


def _from_file(path: Path) -> Pack:
    with np.load(path, allow_pickle=False) as stored:
        return Pack(images=stored["images"], classes=stored["classes"], splits=stored["splits"])


def _from_dataset(path: Path) -> Pack:
    from deepmcat_trainer.dataset import Dataset

    dataset = Dataset.open(path)
    labels = np.asarray(dataset.labels())
    splits = np.full(len(labels), -1, dtype=np.int64)
    for i, split in enumerate(SPLITS):
        splits[dataset.indices(split)] = i
    known = np.flatnonzero((labels != "") & (splits >= 0))
    _, classes = np.unique(labels[known], return_inverse=True)
    images = dataset.images if len(known) == len(labels) else np.asarray(dataset.images)[known]
    return Pack(images=images, classes=classes.astype(np.int64), splits=splits[known])


def _mednist(folder: Path) -> Path:
    archive = Path(os.environ.get("DEEPMCAT_DATA", "")) / "mednist.tar"
    if "DEEPMCAT_DATA" not in os.environ or not archive.is_file():
        raise SystemExit("no SOURCE, and $DEEPMCAT_DATA has no mednist.tar; docs/data.md says where to get it")
    from mednist import KEY

    from deepmcat_trainer.prepare import PrepareOptions, prepare

    (folder / "key").write_bytes(KEY)
    prepare(PrepareOptions(sources=(str(archive),), out=folder / "dataset", key=folder / "key", labels="folders"))
    return folder / "dataset"
