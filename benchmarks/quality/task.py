"""What a method is given: images, rows, a seed and cached features. Labels only where the method is a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.quality.features import Source, Store
from benchmarks.quality.problems import Fold

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

FACTORS = (1, 1.5, 2, 3, 4, 6, 10)  # of the classes: the numbers of groups that a method without a tree is run at
MOST_GROUPS = 60
IMAGES_PER_CLUSTER = 25  # of the fine level of a method without a tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """images: (N, S, S), whose rows `fold` names. classes: how many there are, for the ks to run.

    fit_labels: the class of each fit image, None for a method that may not see it. folder: for what training keeps.
    """

    images: Pixels
    fold: Fold
    classes: int
    seed: int
    device: str
    folder: Path
    store: Store
    fit_labels: Ints | None = None

    @property
    def ks(self) -> list[int]:
        """The numbers of groups that a method without a tree is run at, the fine level last."""
        fine = max(MOST_GROUPS + 1, len(self.fold.fit) // IMAGES_PER_CLUSTER)
        coarse = {int(np.ceil(factor * self.classes)) for factor in FACTORS}
        most = max(1, len(self.fold.fit) // 3)
        return sorted({min(k, most) for k in {*(k for k in coarse if k <= MOST_GROUPS), fine}})

    def features(self, source: Source, rows: Ints) -> Floats:
        """Cached raw features of `rows`, (n, F)."""
        return self.store.at(source, rows)

    def embedding_seconds(self, source: Source) -> float:
        """What the encoder would have taken for the fit and calibration images, by the rate of the cached features."""
        images = len(self.fold.fit) + len(self.fold.calibration)
        return float(images / self.store.record(source)["images_per_s"])

    def reduced(self, fit: int, size: int) -> Task:
        """The task on at most `fit` images to fit, all images as means of blocks, `size` pixels a side."""
        rng = np.random.default_rng(self.seed)
        chosen = self.fold.fit if len(self.fold.fit) <= fit else rng.choice(self.fold.fit, fit, replace=False)
        parts = [np.sort(chosen), self.fold.calibration, self.fold.test]
        factor = self.images.shape[1] // size
        blocks = np.asarray(self.images[np.concatenate(parts)]).reshape(-1, size, factor, size, factor)
        images = np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
        rows = np.split(np.arange(len(images)), np.cumsum([len(part) for part in parts])[:-1])
        return replace(self, images=images, fold=Fold(fit=rows[0], calibration=rows[1], test=rows[2]))
