"""What is sent: images in many syntaxes and sizes, and hostile ones, the same for the same seed and corpora."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
from PIL import Image as PillowImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tests.conformance import cases, golden

from deepmcat_client.requests import RawPlane

MAX_BYTES = 600_000  # of a file of the corpora: larger ones are made here
PUBLIC, REFUSED, HOSTILE, DAMAGED = 45, 20, 45, 20  # so many of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """An image. name: where it is from. What has to be answered to it is the oracle's matter, good or hostile."""

    name: str
    source: bytes | RawPlane

    @property
    def size_bytes(self) -> int:
        """Of its content."""
        return len(self.source if isinstance(self.source, bytes) else self.source.data)


def specimens(seed: int) -> list[Specimen]:
    """All that a run sends."""
    rng = random.Random(seed)
    corpora = [case for case in cases.public() if 0 < len(case.data) <= MAX_BYTES]
    status = {name: row["status"] for name, row in golden.read().items()}
    folder = cases.hostile_folder()
    images = [case for case in corpora if status.get(case.name) == "image"]
    chosen = [
        *_some(rng, images, PUBLIC),
        *_some(rng, [case for case in corpora if status.get(case.name) != "image"], REFUSED),
        *_some(rng, [case for case in cases.hostile(folder) if case.data] if folder else [], HOSTILE),
        *cases.bombs(),
    ]
    return [
        *(Specimen(name=case.name, source=case.data) for case in chosen),
        *_made(np.random.default_rng(seed)),
        *_damaged(rng, images),
    ]


def _some(rng: random.Random, all_: Iterable[cases.Case], count: int) -> list[cases.Case]:
    found = sorted(all_, key=lambda case: case.name)
    return rng.sample(found, min(count, len(found)))


def _damaged(rng: random.Random, images: list[cases.Case]) -> Iterator[Specimen]:
    """Files with some bytes changed or cut off: some are images still."""
    for n in range(DAMAGED):
        case = rng.choice(images)
        data = bytearray(case.data)
        if n % 2:
            del data[rng.randrange(140, len(data)) :]
        for _ in range(n):
            data[rng.randrange(132, len(data))] = rng.randrange(256)
        yield Specimen(name=f"damaged/{n}", source=bytes(data))


def _made(rng: np.random.Generator) -> Iterator[Specimen]:
    """Files and planes of every kind that a caller can send, large ones among them."""
    for n in range(6):
        grey = _blocks(rng, 64, 256)
        yield Specimen(name=f"made/png {n}", source=_file(grey, "PNG"))
        yield Specimen(name=f"made/jpeg {n}", source=_file(grey, "JPEG"))
    yield Specimen(name="made/png, colour", source=_file(np.stack([_blocks(rng, 32, 128)] * 3, axis=2), "PNG"))
    for name, dtype in (("uint8", "<u1"), ("uint16", "<u2"), ("int16", "<i2"), ("float32", "<f4")):
        for inverted in (False, True):
            plane = RawPlane(
                rows=96, columns=80, sample_type=name, inverted=inverted,
                data=_blocks(rng, 16, 96)[:, :80].astype(dtype).tobytes(),
            )  # fmt: skip
            yield Specimen(name=f"made/plane {name}{' inverted' * inverted}", source=plane)
    yield Specimen(name="made/large png", source=_file(rng.integers(0, 256, (1400, 1400), np.uint8), "PNG"))
    frames = np.stack([_blocks(rng, 32, 512) for _ in range(12)])
    yield Specimen(name="made/large multi-frame", source=_multi_frame(frames.astype("<u2") * 16))
    yield Specimen(name="made/small multi-frame", source=_multi_frame(frames[:5, ::4, ::4].astype("<u2") * 16))


def _blocks(rng: np.random.Generator, block: int, side: int) -> np.ndarray:
    """A grey plane of random blocks: images that differ from each other at any size."""
    coarse = rng.integers(0, 256, (side // block, side // block), np.uint8)
    return np.kron(coarse, np.ones((block, block), np.uint8))


def _file(pixels: np.ndarray, format_: str) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, format=format_)
    return file.getvalue()


def _multi_frame(frames: np.ndarray) -> bytes:
    """Uncompressed frames, (F, H, W) uint16."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.826.0.1.3680043.8.498.2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = frames.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()
