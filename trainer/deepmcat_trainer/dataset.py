"""A prepared dataset: what `prepare` makes, `train` reads, and `evaluate` scores on.

    images.npy        (N, size, size) uint8, memory-mapped: one row per used frame, exact duplicates left out
    manifest.parquet  a line per used frame: id, patient, split, digest, duplicate_of, row, frame, flags, coded terms
    labels.parquet    only with --labels: id, label
    sources.parquet   mode 0600: id, path, member, frame, so that people can find an image again
    report.jsonl      mode 0600: what could not be read, and why
    hmac.key          mode 0600: the key of ids, patients and splits, unless --key named one elsewhere
    dataset.json      preprocessing, frames policy, decoders, counts

`train` sees no label: only `Dataset.labels` opens labels.parquet, and only `evaluate` calls it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from deepmcat_core.errors import ArtifactFormat, ConfigError
from deepmcat_core.frame import FramePolicy
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.splits import Shares, Split

FORMAT_VERSION = 1

IMAGES, MANIFEST, LABELS = "images.npy", "manifest.parquet", "labels.parquet"
SOURCES, REPORT, KEY, INFO = "sources.parquet", "report.jsonl", "hmac.key", "dataset.json"

CODED = ("Modality", "BodyPartExamined", "ViewPosition", "SOPClass", "Plane", "Laterality")
"""The header's defined terms that a manifest has a column for."""

DESCRIPTION = "description"
"""Free text, kept only where enough patients share it."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("patient", pa.string()),
        ("split", pa.string()),
        ("digest", pa.string()),
        ("duplicate_of", pa.string()),  # the id of the frame that was kept; null for kept frames
        ("row", pa.int64()),  # index into images.npy; null for duplicates
        ("frame", pa.int32()),
        ("flags", pa.list_(pa.string())),
        *((name, pa.string()) for name in CODED),
        (DESCRIPTION, pa.string()),
    ]
)
LABELS_SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string())])
SOURCES_SCHEMA = pa.schema([("id", pa.string()), ("path", pa.string()), ("member", pa.string()), ("frame", pa.int32())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """The content of dataset.json.

    decoders: what decoded the images. rows: N. splits: rows by split. failures: images by reason.
    """

    created_at: str
    preprocessing: Preprocessing
    frames: FramePolicy
    decoders: tuple[str, ...]
    shares: Shares
    images: int
    rows: int
    duplicates: int
    not_images: int
    failures: dict[str, int]
    splits: dict[str, int]
    patients: int
    labelled: bool
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """The bytes of dataset.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Info:
        """The content of a dataset.json. Raises ConfigError."""
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ConfigError(
                    f"the dataset has format version {version!r}; this release reads version {FORMAT_VERSION}: "
                    "prepare it again"
                )
            data |= {
                "preprocessing": Preprocessing.from_json(data["preprocessing"]),
                "frames": FramePolicy(**data["frames"]),
                "decoders": tuple(str(name) for name in data["decoders"]),
                "shares": Shares(**data["shares"]),
            }
            return cls(**data)
        except (KeyError, TypeError, ValueError, ArtifactFormat) as error:
            raise ConfigError(f"{INFO} is not the description of a prepared dataset: prepare it again") from error


class Dataset:
    """A prepared dataset, opened for reading. Row i of everything here is images[i]."""

    def __init__(self, path: Path, info: Info, images: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.info = info
        self.images = images

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open the dataset at `path`, read-only. Raises ConfigError where it is missing, incomplete or damaged."""
        path = Path(path)
        if not path.exists():
            raise ConfigError(f"there is no dataset at {path}; make one with: deepmcat prepare SOURCE --out {path}")
        if not (path / INFO).is_file():
            raise ConfigError(f"{path} is not a prepared dataset: it has no {INFO}; see deepmcat prepare --help")
        info = Info.from_json((path / INFO).read_bytes())
        dataset = cls(path, info, _map_images(path, info))
        entries = dataset._table(MANIFEST, ["row"]).column("row")
        if pa.compute.count(entries).as_py() != info.rows:
            raise _damaged(path, MANIFEST)
        return dataset

    def __len__(self) -> int:
        """N, the number of rows."""
        return self.info.rows

    @property
    def preprocessing(self) -> Preprocessing:
        """What made the rows from frames; it becomes the artifact's."""
        return self.info.preprocessing

    @property
    def frames(self) -> FramePolicy:
        """Which frames of multi-frame images are rows; it becomes the artifact's."""
        return self.info.frames

    @property
    def decoders(self) -> tuple[str, ...]:
        """What decoded the images, for the record."""
        return self.info.decoders

    def indices(self, split: Split | str) -> npt.NDArray[np.int64]:
        """The rows of a split, ascending."""
        splits = self.column("split")
        return np.flatnonzero(np.asarray(pa.compute.equal(splits, Split(split).value))).astype(np.int64)

    def coded(self) -> pa.Table:
        """The coded header terms and the shared description of each row; null where there is none."""
        return self.rows([*CODED, DESCRIPTION])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the manifest, a value per row."""
        return self.rows([name]).column(name)

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Columns of the manifest, a line per row of `images`: without duplicates."""
        table = self._table(MANIFEST, list(dict.fromkeys(["row", *columns])))
        table = table.filter(pa.compute.is_valid(table.column("row"))).sort_by("row")
        return table.select(list(columns))

    def labels(self) -> list[str]:
        """The label of each row, "" where it has none: for scoring, never for training. Raises ConfigError."""
        if not self.info.labelled:
            raise ConfigError(f"the dataset {self.path} has no labels; prepare it with --labels folders or FILE.csv")
        table = self._table(LABELS, ["id", "label"])
        labels = dict(zip(table.column("id").to_pylist(), table.column("label").to_pylist(), strict=True))
        return [labels.get(id_, "") for id_ in self.column("id").to_pylist()]

    def _table(self, name: str, columns: list[str]) -> pa.Table:
        try:
            return pq.read_table(self.path / name, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.path, name) from error


def _map_images(path: Path, info: Info) -> npt.NDArray[np.uint8]:
    try:
        images: npt.NDArray[np.uint8] = np.load(path / IMAGES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, IMAGES) from error
    size = info.preprocessing.size
    if images.shape != (info.rows, size, size) or images.dtype != np.uint8:
        raise _damaged(path, IMAGES)
    return images


def _damaged(path: Path, name: str) -> ConfigError:
    return ConfigError(f"the dataset {path} is damaged: {name} is missing or not what {INFO} says; prepare it again")
