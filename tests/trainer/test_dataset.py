"""A prepared dataset opens as it was made, or says in one sentence why not."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.errors import ConfigError
from deepmcat_core.frame import FramePolicy
from deepmcat_core.planes import ReadOptions
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.dataset import CODED, Dataset
from deepmcat_trainer.images_file import ImagesFile
from deepmcat_trainer.prepare import PrepareOptions, prepare
from deepmcat_trainer.splits import Shares, Split

READ = ReadOptions(preprocessing=Preprocessing(size=16), frames=FramePolicy(count=2))
SHARES = Shares(fit=40, calibration=30, test=30)


@pytest.fixture(name="made", scope="module")
def made_fixture(tmp_path_factory: pytest.TempPathFactory, png: Callable[..., Path], pool: DecodePool) -> Path:
    """A dataset of 40 images in two classes."""
    root = tmp_path_factory.mktemp("made")
    for seed in range(40):
        png(root / f"archive/{'odd' if seed % 2 else 'even'}/{seed:02}.png", seed)
    (root / "key").write_bytes(b"a key for tests only, 32 bytes..")
    options = PrepareOptions(
        sources=(str(root / "archive"),),
        out=root / "dataset",
        labels="folders",
        shares=SHARES,
        key=root / "key",
        read=READ,
    )
    prepare(options, console=Console(file=io.StringIO()), pool=pool)
    return options.out


@pytest.fixture(name="folder")
def folder_fixture(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return shutil.copytree(made, tmp_path / "dataset")


def test_a_dataset_opens_as_it_was_made(folder: Path) -> None:
    """Images, policies, splits, terms and labels line up, row by row."""
    dataset = Dataset.open(folder)

    assert len(dataset) == 40
    assert dataset.images.shape == (40, 16, 16)
    assert isinstance(dataset.images, np.memmap)
    assert (dataset.preprocessing, dataset.frames) == (READ.preprocessing, READ.frames)
    assert dataset.decoders
    assert dataset.labels() == ["even"] * 20 + ["odd"] * 20
    assert dataset.coded().num_rows == 40
    assert set(CODED) < set(dataset.coded().column_names)


def test_splits_divide_the_rows(folder: Path) -> None:
    """Every row is in exactly one split, and the counts of dataset.json agree."""
    dataset = Dataset.open(str(folder))
    indices = [dataset.indices(split) for split in Split]

    assert sorted(np.concatenate(indices)) == list(range(40))
    assert {split.value: len(rows) for split, rows in zip(Split, indices, strict=True)} == dataset.info.splits
    assert all(rows.dtype == np.int64 for rows in indices)


def test_only_labels_opens_the_labels(folder: Path) -> None:
    """Everything that training asks for is there when labels.parquet is not."""
    (folder / "labels.parquet").unlink()
    dataset = Dataset.open(folder)

    assert len(dataset.indices("fit")) + dataset.coded().num_rows + len(dataset.column("id")) > 0
    with pytest.raises(ConfigError, match="is damaged"):
        dataset.labels()


@pytest.mark.parametrize("name", ["images.npy", "manifest.parquet", "dataset.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "garbled"])
def test_damage_is_one_sentence(folder: Path, name: str, damage: str) -> None:
    """A file that is missing, cut or overwritten is a ConfigError and never another dataset."""
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "missing":
        changed = {"empty": b"", "short": data[: len(data) // 2], "garbled": b"\0" * len(data)}[damage]
        (folder / name).write_bytes(changed)

    with pytest.raises(ConfigError, match="prepare"):
        Dataset.open(folder)


def test_other_format_versions_are_refused(folder: Path) -> None:
    """A dataset of a later release is not guessed at."""
    info = json.loads((folder / "dataset.json").read_bytes()) | {"format_version": 99}
    (folder / "dataset.json").write_text(json.dumps(info))

    with pytest.raises(ConfigError, match="format version 99; this release reads version 1"):
        Dataset.open(folder)


def test_no_dataset_is_one_sentence(tmp_path: Path) -> None:
    """A wrong path, and a folder of something else."""
    with pytest.raises(ConfigError, match="there is no dataset at"):
        Dataset.open(tmp_path / "missing")
    with pytest.raises(ConfigError, match="is not a prepared dataset"):
        Dataset.open(tmp_path)


def test_images_file_forgets_what_was_not_recorded(tmp_path: Path) -> None:
    """Planes behind the last recorded row are cut off, and the file reads as a numpy array once it is finished."""
    planes = np.random.default_rng(0).integers(0, 256, size=(5, 8, 8), dtype=np.uint8)
    with ImagesFile(tmp_path / "images.npy", size=8, rows=0) as images:
        for plane in planes[:3]:
            images.append(plane)
    with ImagesFile(tmp_path / "images.npy", size=8, rows=2) as images:
        rows = [images.append(plane) for plane in planes[2:]]
        images.finish()

    assert rows == [2, 3, 4]
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy", mmap_mode="r"), planes)
