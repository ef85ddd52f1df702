"""DICOM objects made to measure, the public files that pydicom brings, and a small encoder."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data_store
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from deepmcat_core.decoding import decode
from deepmcat_core.frame import Frame, FramePolicy, Image, Intensity, Limits
from deepmcat_core.intensity import stretch

if TYPE_CHECKING:
    from deepmcat_core.encoder import Encoder

CORPUS = (Path(pydicom.__file__).parent / "data" / "test_files", Path(data_store.__file__).parent / "data")

MakeDicom = Callable[..., bytes]
Decode = Callable[..., Image]


def _dataset(pixels: np.ndarray, frames: int, attributes: dict[str, Any]) -> Dataset:
    shape = pixels.shape[1:] if frames else pixels.shape
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = 3 if len(shape) == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = frames
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = bits
    if pixels.dtype.kind in "iu":
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.fixture(scope="session")
def make_dicom() -> MakeDicom:
    """A function that makes a DICOM file of an array.

    (H, W), (H, W, 3) or, with `frames`, (F, H, W). Keyword arguments are attributes and win over what the array says.
    `encoded`: compressed frames, or pixel data as they are encapsulated, in place of the array's own bytes.
    `bare`: without preamble and file meta group.
    """

    def make(
        pixels: np.ndarray,
        *,
        frames: int = 0,
        syntax: str = ExplicitVRLittleEndian,
        encoded: list[bytes] | bytes | None = None,
        bare: bool = False,
        **attributes: Any,
    ) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that the standard does not allow, which is what tests are about
            dataset = _dataset(pixels, frames, attributes)
        uid = pydicom.uid.UID(syntax)
        keyword = {"f4": "FloatPixelData", "f8": "DoubleFloatPixelData"}.get(pixels.dtype.str[1:], "PixelData")
        order = "<" if uid.is_little_endian else ">"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if encoded is None else encoded
        data = encapsulate(data) if isinstance(data, list) else data
        if keyword not in attributes and "PixelData" not in attributes:
            setattr(dataset, keyword, data + b"\0" * (len(data) % 2))
            dataset[keyword].VR = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(
                keyword, "OB" if encoded or pixels.dtype.itemsize == 1 else "OW"
            )
        file = io.BytesIO()
        if bare:
            pydicom.dcmwrite(file, dataset, implicit_vr=uid.is_implicit_VR, little_endian=uid.is_little_endian)
        else:
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = uid
            pydicom.dcmwrite(file, dataset, enforce_file_format=True)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def decode_image() -> Decode:
    """`decode`, and deep numbers stretched from minimum to maximum at the size that they are stored in.

    So expected values are easy to write down.
    """

    def run(
        source: Any, *, mode: Any = "percentile", count: int = 1, limits: Limits | None = None, side: int | None = None
    ) -> Image:
        intensity = Intensity(mode=mode, low=0, high=100)
        frames = FramePolicy(count=count)
        image = decode(source, intensity=intensity, frames=frames, limits=limits or Limits(), side=side)
        return replace(image, frames=tuple(_as_grey(frame, intensity) for frame in image.frames))

    return run


def _as_grey(frame: Frame, intensity: Intensity) -> Frame:
    if not frame.deep:
        return frame
    known = np.ones(frame.pixels.shape, dtype=bool) if frame.known is None else frame.known
    grey = stretch(frame.pixels, frame.pixels[known], intensity, inverted=frame.inverted) * known
    grey = grey if frame.painted is None else grey + frame.painted
    return replace(frame, pixels=grey, deep=False, inverted=False, known=None, painted=None)


@pytest.fixture(scope="session")
def grey_of(decode_image: Decode) -> Callable[..., np.ndarray]:
    """The (H, W) pixels of the one frame that is used of an image."""

    def run(source: Any, **options: Any) -> np.ndarray:
        return decode_image(source, **options).frames[0].pixels

    return run


def corpus_files() -> Iterator[Path]:
    """Every distinct file that `pydicom` and `pydicom-data` bring for tests."""
    seen = set()
    for root in CORPUS:
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest not in seen and "__pycache__" not in path.parts:
                seen.add(digest)
                yield path


@pytest.fixture(scope="session")
def corpus() -> list[Path]:
    """See `corpus_files`."""
    return list(corpus_files())


@pytest.fixture(scope="session")
def corpus_bytes() -> Callable[[str], bytes]:
    """The content of a corpus file by its name."""

    def read(name: str) -> bytes:
        return next(path for root in CORPUS if (path := root / name).is_file()).read_bytes()

    return read


@pytest.fixture(name="encoder", scope="module")
def encoder_fixture() -> Encoder:
    """An encoder that a module's tests share: `seeded_encoder`."""
    from tests.core.encoders import seeded_encoder  # imports torch, which few of these tests need

    return seeded_encoder()


@pytest.fixture(name="onnx", scope="module")
def onnx_fixture(encoder: Encoder) -> bytes:
    """The same as an ONNX file."""
    from tests.core.encoders import SIZE

    from deepmcat_trainer.onnx_export import export_onnx

    return export_onnx(encoder, SIZE)
