"""DICOM objects in every transfer syntax and with every kind of pixels, small, and the same for the same seed.

Every text element and UID holds a canary, so that a message that quotes a header gives itself away.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from .encoders import ENCODERS, Pixels

CANARY_TEXT = "ZZCANARYZZ"
CANARY_NUMBER = "7719377193"  # in UIDs, where letters may not be

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SYNTAXES: tuple[UID, ...] = (*NATIVE, *ENCODERS)

_TEXTS = ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "AccessionNumber", "ImageComments")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_FLOATS = {"f4": ("FloatPixelData", "OF"), "f8": ("DoubleFloatPixelData", "OD")}


def grey(rng: Random, bits: int, *, signed: bool = False, frames: int = 1, channels: int = 1) -> Pixels:
    """(F, H, W) or (F, H, W, channels) of a ramp with some noise, whole numbers of so many bits."""
    # Now and then large enough to be decoded at a part of the size.
    height, width = (
        (rng.randint(64, 100), rng.randint(64, 100)) if rng.random() < 0.2 else (rng.randint(1, 24), rng.randint(2, 24))
    )
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 2 ** min(bits - 1, 5), (frames, height, width, 3))
    ramp = np.linspace(0, 2**bits - 1 - noise.max(), height * width).astype(np.int64).reshape(height, width, 1)
    values = (ramp + noise)[..., :channels] - (2 ** (bits - 1) if signed else 0)
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    pixels: Pixels = values.astype(f"{'i' if signed else 'u'}{size}")
    return pixels if channels == 3 else pixels[..., 0]


def _item(**attributes: object) -> Dataset:
    item = Dataset()
    _set(item, attributes)
    return item


def _lut(keyword: str, entries: int, bits: int) -> Sequence:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [entries, 0, bits])
    table.add_new("LUTData", "OW", np.linspace(0, 2**bits - 1, entries).astype("<u2").tobytes())
    table.LUTExplanation = f"{CANARY_TEXT} {keyword}"
    return Sequence([table])


def _palette(dataset: Dataset, *, segmented: bool) -> None:
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        if segmented:  # one discrete entry, a line over 254 more, and a copy of the first segment
            words = [0, 1, 7, 1, 254, 60000, 2, 1, 0, 0]
            table = np.asarray(words, dtype="<u2")
            dataset.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", table.tobytes())
        else:
            table = np.arange(256, dtype="<u2") * 257
            dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())


def _functional_groups(dataset: Dataset, frames: int) -> None:
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = frames
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [_item(PixelMeasuresSequence=Sequence([_item(PixelSpacing=[1, 2])]))]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        _item(
            PixelValueTransformationSequence=Sequence([_item(RescaleSlope=2, RescaleIntercept=-frame)]),
            FrameVOILUTSequence=Sequence([_item(WindowCenter=40, WindowWidth=80, VOILUTFunction="SIGMOID")]),
        )
        for frame in range(frames)
    )


def _windowed(dataset: Dataset, rng: Random) -> Pixels:
    _set(dataset, {"WindowCenter": [100, 9], "WindowWidth": [200, 9], "RescaleSlope": "-1.5", "PixelPaddingValue": 3})
    dataset.PhotometricInterpretation = "MONOCHROME1"
    return grey(rng, 12)


def _tables(dataset: Dataset, rng: Random) -> Pixels:
    dataset.ModalityLUTSequence = _lut("modality", 64, 16)
    dataset.VOILUTSequence = _lut("voi", 300, 12)
    return grey(rng, 8)


def _paletted(dataset: Dataset, rng: Random) -> Pixels:
    _palette(dataset, segmented=False)
    return grey(rng, 8)


def _segment_paletted(dataset: Dataset, rng: Random) -> Pixels:
    _palette(dataset, segmented=True)
    return grey(rng, 8)


def _coloured(photometric: str, planar: int = 0) -> Callable[[Dataset, Random], Pixels]:
    def make(dataset: Dataset, rng: Random) -> Pixels:
        dataset.PhotometricInterpretation = photometric
        dataset.PlanarConfiguration = planar
        return grey(rng, 8, channels=3)

    return make


def _multi_frame(dataset: Dataset, rng: Random) -> Pixels:
    dataset.NumberOfFrames = frames = rng.randint(2, 5)
    return grey(rng, 8, frames=frames)


def _enhanced(dataset: Dataset, rng: Random) -> Pixels:
    _functional_groups(dataset, frames := rng.randint(1, 4))
    return grey(rng, 12, frames=frames)


def _overlaid(dataset: Dataset, rng: Random) -> Pixels:
    dataset.add_new(0x60000010, "US", 4)
    dataset.add_new(0x60003000, "OW", b"\xaa\x55")
    dataset.HighBit = 15
    return grey(rng, 12)


def _of_single_bits(dataset: Dataset, rng: Random) -> Pixels:
    _set(dataset, {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0})
    return grey(rng, 1)


def _of_floats(kind: str) -> Callable[[Dataset, Random], Pixels]:
    return lambda dataset, rng: (grey(rng, 16) / 7).astype(kind)


# What an object holds → what sets its attributes and makes (F, H, W) or (F, H, W, 3).
CONTENTS: dict[str, Callable[[Dataset, Random], Pixels]] = {
    "grey 8": lambda dataset, rng: grey(rng, 8),
    "grey 12": lambda dataset, rng: grey(rng, 12),
    "grey 16": lambda dataset, rng: grey(rng, 16),
    "grey 32": lambda dataset, rng: grey(rng, 32),
    "signed 16": lambda dataset, rng: grey(rng, 16, signed=True),
    "windowed": _windowed,
    "tables": _tables,
    "palette": _paletted,
    "segmented palette": _segment_paletted,
    "RGB": _coloured("RGB"),
    "YBR": _coloured("YBR_FULL"),
    "planes": _coloured("RGB", planar=1),
    "frames": _multi_frame,
    "enhanced": _enhanced,
    "overlaid": _overlaid,
    "bits": _of_single_bits,
    "floats": _of_floats("f4"),
    "doubles": _of_floats("f8"),
}
_NATIVE_ONLY = {"planes", "overlaid", "bits", "floats", "doubles"}
_BITS = {"grey 12": 12, "grey 16": 16, "grey 32": 32, "signed 16": 16, "windowed": 12, "enhanced": 12}


def _can_hold(syntax: UID, content: str) -> bool:
    if syntax in NATIVE:
        return True
    encoder = ENCODERS[syntax]
    bits = _BITS.get(content, 8)
    return content not in _NATIVE_ONLY and bits in encoder.bits and (encoder.signed or content != "signed 16")


# Every kind of object: a transfer syntax, and what its pixels are.
KINDS: tuple[tuple[UID, str], ...] = tuple(
    (syntax, content) for syntax in SYNTAXES for content in CONTENTS if _can_hold(syntax, content)
)


@lru_cache(maxsize=1024)
def make_object(syntax: UID, content: str, seed: int) -> bytes:
    """A DICOM file; the same for the same seed."""
    return write_object(*make_dataset(syntax, content, seed))


def make_dataset(
    syntax: UID, content: str, seed: int, changes: Mapping[str, object] | None = None
) -> tuple[Dataset, UID]:
    """A data set with its pixels encoded, and how to write it. changes: attributes set last, as lies."""
    rng = Random(f"{syntax} {content} {seed}")  # strings seed the same everywhere
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    _set(dataset, dict.fromkeys(_TEXTS, CANARY_TEXT))
    _set(dataset, {keyword: f"1.2.826.0.1.{CANARY_NUMBER}.{n}" for n, keyword in enumerate(_UIDS)})
    dataset.PhotometricInterpretation = "MONOCHROME2"
    pixels = CONTENTS[content](dataset, rng)
    colour = pixels.ndim == 4
    bits = _BITS.get(content, 8 * pixels.dtype.itemsize)
    defaults = {
        "SamplesPerPixel": 3 if colour else 1,
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
    }
    if pixels.dtype.kind != "f":
        defaults |= {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(pixels.dtype.kind == "i")}
    if colour:
        defaults["PlanarConfiguration"] = 0
    _set(dataset, {keyword: value for keyword, value in defaults.items() if keyword not in dataset})
    _set_pixels(dataset, syntax, pixels, bits, rng)
    _set(dataset, changes or {})
    return dataset, syntax


def write_object(dataset: Dataset, syntax: UID) -> bytes:
    """The DICOM file of a data set, whatever it says of itself."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID or CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _set(dataset: Dataset, attributes: Mapping[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the standard does not allow, which is what this is about
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)


def _set_pixels(dataset: Dataset, syntax: UID, pixels: Pixels, bits: int, rng: Random) -> None:
    if syntax in ENCODERS:
        fragments = 1 if syntax == RLELossless else rng.randint(1, 2)  # PS3.5 A.4.2: RLE has one fragment a frame
        _set_encapsulated(dataset, [ENCODERS[syntax].encode(frame, bits) for frame in pixels], fragments, rng)
        return
    order = "<" if syntax.is_little_endian else ">"
    if dataset.BitsAllocated == 1:
        data = np.packbits(pixels, bitorder="little").tobytes()
    elif dataset.get("PlanarConfiguration"):
        data = np.moveaxis(pixels, 3, 1).tobytes()
    else:
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    keyword, vr = _FLOATS.get(pixels.dtype.str[1:], ("PixelData", "OB" if dataset.BitsAllocated <= 8 else "OW"))
    dataset.add_new(keyword, vr, data + b"\0" * (len(data) % 2))


def _set_encapsulated(dataset: Dataset, frames: list[bytes], fragments: int, rng: Random) -> None:
    """With a Basic Offset Table and a frame in so many fragments, without one, or with an extended one."""
    match rng.randrange(3):
        case 0:
            dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments)
        case 1:
            dataset.PixelData = encapsulate(frames, has_bot=False)
        case _:
            data, offsets, lengths = encapsulate_extended(frames)
            dataset.PixelData = data
            dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    dataset["PixelData"].VR = "OB"
