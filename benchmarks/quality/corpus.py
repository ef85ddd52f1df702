"""The images of every problem: prepared once by `deepmcat prepare`, one dataset for all of them.

Ids, and with them the splits, come from a published key, so that everybody's split is the same. Exact duplicates are
left out before splitting, and where a patient is known (cardiac) no patient is on two sides. Labels are kept apart
from what methods are given: they only score.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepmcat_core.planes import ReadOptions
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.prepare import PrepareOptions, prepare
from deepmcat_trainer.splits import LABELLED, Split

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

KEY = b"mednist benchmark: a published key, so that everybody's split is the same\n"
SOURCES = ("mednist.tar", "cardiac", "other/chest_xray", "other/blood_smear")
SIZE = 128
SAMPLING_SEED = 20261123


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """images: (N, S, S), memory-mapped. The rest has an entry per image: its label, split, patient ("": unknown).

    rows: the images that problems may use, ascending. digest: of pixels, labels, splits and patients of those.
    """

    path: Path
    images: Pixels
    labels: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    patients: npt.NDArray[np.str_]
    pixels: npt.NDArray[np.str_]
    rows: Ints

    @property
    def digest(self) -> str:
        """SHA-256 over what is known of each image that may be used."""
        return self.digest_of(self.rows)

    def digest_of(self, rows: Ints) -> str:
        """SHA-256 over what is known of the images at `rows`."""
        digest = hashlib.sha256()
        for column in (self.pixels, self.labels, self.splits, self.patients):
            digest.update("\n".join(column[rows]).encode() + b"\0")
        return digest.hexdigest()

    def limited(self, per_label: int) -> Corpus:
        """The corpus with at most `per_label` images of each label, chosen with a fixed seed."""
        kept = []
        for label in np.unique(self.labels[self.rows]):
            rows = self.rows[self.labels[self.rows] == label]
            rng = np.random.default_rng(SAMPLING_SEED)
            kept.append(rows if len(rows) <= per_label else rng.choice(rows, per_label, replace=False))
        return replace(self, rows=np.sort(np.concatenate(kept)))


def missing(data: Path) -> list[str]:
    """What the corpus needs and `data` lacks."""
    return [name for name in SOURCES if not (data / name).exists()]


def make(data: Path, work: Path) -> Corpus:
    """The corpus in the folder `work`, prepared from the image sets in `data` where it is not there yet."""
    path = work / "dataset"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        (work / "key").write_bytes(KEY)
        sources = tuple(str(data / name) for name in SOURCES)
        read = ReadOptions(preprocessing=Preprocessing(size=SIZE))
        prepare(
            PrepareOptions(sources=sources, out=path, labels="folders", shares=LABELLED, key=work / "key", read=read)
        )
    return opened(Dataset.open(path))


def opened(dataset: Dataset) -> Corpus:
    """A prepared dataset as a corpus; images without a label are in no problem."""
    labels = np.asarray(dataset.labels(), dtype=np.str_)
    splits = np.empty(len(dataset), dtype="<U16")
    for split in Split:
        splits[dataset.indices(split)] = split.value
    patients, pixels = (
        np.asarray([value or "" for value in dataset.column(name).to_pylist()], dtype=np.str_)
        for name in ("patient", "digest")
    )
    return Corpus(
        path=dataset.path, images=dataset.images, labels=labels, splits=splits, patients=patients, pixels=pixels,
        rows=np.flatnonzero(labels != "").astype(np.int64),
    )  # fmt: skip
