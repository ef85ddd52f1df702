"""What is asked: every file that pydicom and pydicom-data bring, the hostile set, and three bombs made here."""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import data_store
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

PUBLIC = {"pydicom": Path(pydicom.__file__).parent / "data", "pydicom-data": Path(data_store.__file__).parent / "data"}
HOSTILE = "hostile"
NO_HOSTILE = "DEEPMCAT_DATA does not name a folder that holds hostile/ with its manifest.csv (docs/data.md)"

ANY = "image_or_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file. name: set and path within it. expect: an outcome in the words of the hostile set's manifest.

    unread: it has to be refused before anything of it is decoded.
    """

    name: str
    data: bytes
    expect: str = ANY
    unread: bool = False


def public() -> Iterator[Case]:
    """Every file of the two packages but their Python code; the same bytes by another name are another file."""
    for package, root in PUBLIC.items():
        for path in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")):
            yield Case(name=f"{package}/{path.relative_to(root).as_posix()}", data=path.read_bytes())


def hostile_folder() -> Path | None:
    """Where the hostile set is; None where it is not."""
    folder = Path(os.environ.get("DEEPMCAT_DATA", "/nowhere")) / HOSTILE
    return folder if (folder / "manifest.csv").is_file() else None


def hostile(folder: Path) -> Iterator[Case]:
    """Every file of the set's manifest, with what it expects."""
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield Case(name=f"{HOSTILE}/{row['path']}", data=(folder / row["path"]).read_bytes(), expect=row["expect"])


def bombs() -> Iterator[Case]:
    """Three small files that would cost gigabytes, a stack or minutes if they were believed."""
    inflated, nested, frames = deflated(160 * 2**20), nesting(20_000), claimed_frames(50_000)
    yield Case(name="bombs/deflate_160_MiB", data=inflated, expect="IMAGE_TOO_LARGE", unread=True)
    yield Case(name="bombs/nesting_20000", data=nested, expect="IMAGE_TOO_LARGE", unread=True)
    yield Case(name="bombs/frames_50000", data=frames, expect="CORRUPT_IMAGE", unread=True)


def deflated(size: int) -> bytes:
    """An image of `size` black bytes (a multiple of 16 KiB), in Deflated Explicit VR Little Endian."""
    dataset = _image(rows=16384, columns=size // 16384)
    dataset.PixelData = bytes(dataset.Rows * dataset.Columns)
    file = _written(dataset, ExplicitVRLittleEndian)
    body = file[file.index(b"\x08\x00\x16\x00UI") :]
    meta = _written(Dataset(), DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta[: _end_of_meta(meta)] + packer.compress(body) + packer.flush()


def nesting(depth: int) -> bytes:
    """An image with so many sequences within each other before its pixels."""
    dataset = _image(rows=8, columns=8)
    dataset.PixelData = bytes(64)
    file = _written(dataset, ExplicitVRLittleEndian)
    pixels = file.index(b"\xe0\x7f\x10\x00")
    opened = b"\x40\x00\x75\x02SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return file[:pixels] + opened * depth + closed * depth + file[pixels:]


def claimed_frames(frames: int) -> bytes:
    """One compressed frame of an image that says it has so many of 512 x 512."""
    dataset = _image(rows=512, columns=512)
    dataset.NumberOfFrames = frames
    line = b"\x81\x07" * 4  # PS3.5 G.3.1: the byte 7, 128 times, four times over
    header = b"".join(value.to_bytes(4, "little") for value in (1, 64, *[0] * 14))
    dataset.PixelData = encapsulate([header + line * 512])
    dataset["PixelData"].VR = "OB"
    return _written(dataset, RLELossless)


def _image(*, rows: int, columns: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.826.0.1.3680043.8.498.1"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    return dataset


def _written(dataset: Dataset, syntax: str) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _end_of_meta(file: bytes) -> int:
    """After the group length of the file meta group, which is its first element, come so many bytes of it."""
    return 144 + int.from_bytes(file[140:144], "little")
