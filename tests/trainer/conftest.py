"""Small archives made on the spot: PNG and DICOM files with pixels of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.planes import ReadOptions
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.prepare import PrepareOptions


def pixels(seed: int, side: int = 24) -> npt.NDArray[np.uint8]:
    """An image of its own for each seed, (side, side)."""
    return np.random.default_rng(seed).integers(0, 256, size=(side, side), dtype=np.uint8)


def write_png(path: Path, seed: int, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path)
    return path


def write_dicom(path: Path, seed: int, *, frames: int = 1, **attributes: str) -> Path:
    """An MR image; `attributes` are elements by keyword, such as PatientID."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality = "MR"
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    data.Rows = data.Columns = 24
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    if frames > 1:
        data.NumberOfFrames = frames
    planes = np.stack([pixels(seed * 100 + frame) for frame in range(frames)]).astype(np.uint16) * 16
    data.PixelData = planes.tobytes()
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


@pytest.fixture(name="png", scope="session")
def png_fixture() -> Callable[..., Path]:
    """Writes a PNG: png(path, seed, side=24)."""
    return write_png


@pytest.fixture(name="dicom", scope="session")
def dicom_fixture() -> Callable[..., Path]:
    """Writes a DICOM file: dicom(path, seed, frames=1, PatientID=…)."""
    return write_dicom


@pytest.fixture(name="pool", scope="session")
def pool_fixture() -> Iterator[DecodePool]:
    """Two decoding workers that all tests share: they take a second to start."""
    with DecodePool(2) as pool:
        yield pool


@pytest.fixture(name="options")
def options_fixture(tmp_path: Path) -> Callable[..., PrepareOptions]:
    """Options with one worker, a fixed key and small images; anything can be given instead."""
    key = tmp_path / "test.key"
    key.write_bytes(b"a key for tests only, 32 bytes..")
    read = ReadOptions(preprocessing=Preprocessing(size=32))

    def make(*sources: Path | str, **changes: object) -> PrepareOptions:
        given: dict[str, object] = {"out": tmp_path / "dataset", "key": key, "workers": 1, "read": read} | changes
        return PrepareOptions(sources=tuple(str(source) for source in sources), **given)  # type: ignore[arg-type]

    return make


@pytest.fixture(name="make_dataset", scope="session")
def make_dataset_fixture() -> Callable[..., Path]:
    """Writes a prepared dataset: make_dataset(folder, images, splits, labels=None, **coded columns)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepmcat_core.frame import FramePolicy
    from deepmcat_core.preprocessing import Preprocessing
    from deepmcat_trainer import dataset
    from deepmcat_trainer.splits import Shares

    def make(
        folder: Path,
        images: npt.NDArray[np.uint8],
        splits: list[str],
        labels: list[str] | None = None,
        **columns: list[str | None],
    ) -> Path:
        n = len(images)
        ids = [f"{i:064x}" for i in range(n)]
        table: dict[str, object] = dict.fromkeys(dataset.MANIFEST_SCHEMA.names, [None] * n)
        table |= {
            "id": ids,
            "patient": ids,
            "split": splits,
            "digest": ids,
            "row": range(n),
            "frame": [0] * n,
            **columns,
        }
        folder.mkdir(parents=True)
        np.save(folder / dataset.IMAGES, images)
        pq.write_table(pa.table(table, schema=dataset.MANIFEST_SCHEMA), folder / dataset.MANIFEST)
        if labels is not None:
            rows = {"id": ids, "label": labels}
            pq.write_table(pa.table(rows, schema=dataset.LABELS_SCHEMA), folder / dataset.LABELS)
        info = dataset.Info(
            created_at="2026-01-01T00:00:00Z",
            preprocessing=Preprocessing(size=images.shape[1]),
            frames=FramePolicy(),
            decoders=("pillow 11",),
            shares=Shares(fit=60, calibration=10, test=30),
            images=n,
            rows=n,
            duplicates=0,
            not_images=0,
            failures={},
            splits={name: splits.count(name) for name in set(splits)},
            patients=n,
            labelled=labels is not None,
        )
        (folder / dataset.INFO).write_bytes(info.to_json())
        return folder

    return make
