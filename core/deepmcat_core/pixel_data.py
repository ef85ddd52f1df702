"""Stored values of the frames that are used, and of no others.

What the header claims is checked before anything is decoded: sides, decoded bytes, number of frames against what is
there, and the size that a compressed frame states itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, RLELossless

from deepmcat_core import codecs, shrinking
from deepmcat_core.codestream import Codestream, read_codestream
from deepmcat_core.dicom_values import number, text
from deepmcat_core.encapsulation import EncapsulatedFrames
from deepmcat_core.errors import CorruptImage, UnsupportedImage
from deepmcat_core.frame import Box, Limits
from deepmcat_core.shrinking import Wanted

BITS_READ = (1, 8, 16, 32, 64)

# Samples of 12 bits without gaps were allowed at first; 1 and the multiples of 8 are today (PS3.5 8.1.1).
_BITS_LEGAL = frozenset({1, 12, *range(8, 65, 8)})

ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# Means of these are what they look like; means of palette indices are not.
_PHOTOMETRIC_SHRUNK = frozenset({"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422"})

_RLE_EXPANSION = 64  # PS3.5 G.3: two bytes stand for 128 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """What the header says of the pixels. samples: per pixel; bits: allocated per sample; frames: in the object."""

    rows: int
    columns: int
    samples: int
    bits: int
    frames: int

    @property
    def frame_bytes(self) -> int:
        """A decoded frame, as stored values."""
        return self.rows * self.columns * self.samples * max(8, self.bits) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFrame:
    """values: (H, W), (H, W, 3) or, for luminance alone, (H, W, 1), as stored.

    photometric: what they mean after decoding, such as MONOCHROME2 or RGB. decoder: see `Image`. box: see `Frame`.
    """

    index: int
    values: npt.NDArray[Any]
    photometric: str
    decoder: str
    box: Box | None = None


def pixel_layout(dataset: Dataset, limits: Limits) -> PixelLayout:
    """The layout, within limits. Raises CorruptImage, ImageTooLarge, UnsupportedImage."""
    rows, columns, bits = (_required(dataset, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    samples = int(number(dataset, "SamplesPerPixel") or 1)
    frames = int(number(dataset, "NumberOfFrames") or 1)
    limits.check_plane(rows, columns)
    if samples not in (1, 3):
        raise UnsupportedImage(f"the DICOM image has {samples} samples per pixel; 1 and 3 are read")
    if bits not in BITS_READ:
        error = UnsupportedImage if bits in _BITS_LEGAL else CorruptImage
        raise error(f"the DICOM image has {bits} bits allocated; 1, 8, 16, 32 and 64 are read")
    if frames < 1:
        raise CorruptImage(f"the DICOM image has {frames} frames; 1 or more are allowed")
    return PixelLayout(rows=rows, columns=columns, samples=samples, bits=bits, frames=frames)


def complete(dataset: Dataset, layout: PixelLayout) -> None:
    """Add what a header may lack without a doubt about what is meant; decoders want it said."""
    stored = number(dataset, "BitsStored") or layout.bits
    meant = {
        "SamplesPerPixel": layout.samples,
        "PixelRepresentation": 0,
        "BitsStored": int(stored),
        "HighBit": int(stored) - 1,
    }
    if layout.samples > 1:
        meant["PlanarConfiguration"] = 0
    for keyword, value in meant.items():
        if number(dataset, keyword) is None:
            setattr(dataset, keyword, value)


def stored_frames(
    dataset: Dataset,
    syntax: UID,
    layout: PixelLayout,
    indices: Sequence[int],
    limits: Limits,
    wanted: Callable[[int], Wanted | None] = lambda index: None,
) -> Iterator[StoredFrame]:
    """Decode the frames of `indices`, one at a time. Raises ImageError, and may raise what pydicom raises.

    wanted: what a frame is for. Where many pixels of it become one, some codecs leave most out. None: all of it.
    """
    limits.check_frames(len(indices))
    limits.check_decoded_bytes(layout.frame_bytes * len(indices))
    if syntax in codecs.NATIVE:
        _require_whole_colours(dataset, layout)
        packed = layout.bits == 1 and layout.samples == 1 and "PixelData" in dataset
        yield from (_packed if packed else _native)(dataset, syntax, layout, indices)
        return
    frames = EncapsulatedFrames(dataset.PixelData, layout.frames, _extended_offsets(dataset), limits)
    encoded = {index: frames[index] for index in indices}
    codestreams = {index: _checked(frame, syntax, layout) for index, frame in encoded.items()}
    for index, frame in encoded.items():
        shrunk = _shrunk(frame, codestreams[index], dataset, syntax, index, wanted(index))
        yield shrunk or _decoded(frame, codestreams[index], dataset, syntax, index)


def _require_whole_colours(dataset: Dataset, layout: PixelLayout) -> None:
    """Refuse chroma of fewer pixels than luminance, but for YBR_FULL_422, which pydicom knows."""
    partial = text(dataset, "PhotometricInterpretation").startswith("YBR_PARTIAL")
    if partial and "PixelData" in dataset and len(dataset.PixelData) < layout.frame_bytes * layout.frames:
        raise UnsupportedImage("the DICOM image has chroma for some pixels only, in a way that is long retired")


def _packed(dataset: Dataset, syntax: UID, layout: PixelLayout, indices: Sequence[int]) -> Iterator[StoredFrame]:
    """Frames of one bit a pixel, without gaps: a frame may begin within a byte (PS3.5 8.1.1), where pydicom errs."""
    source, frame_bits = dataset.PixelData, layout.rows * layout.columns
    if 8 * len(source) < layout.frames * frame_bits:
        raise CorruptImage("the DICOM image has fewer pixels than it claims")
    if not syntax.is_little_endian and dataset["PixelData"].VR == "OW":  # the first pixel is in the second byte
        source = np.frombuffer(source[: len(source) // 2 * 2], dtype=">u2").astype("<u2").tobytes()
    for index in indices:
        first, last = index * frame_bits, (index + 1) * frame_bits
        octets = np.frombuffer(source[first // 8 : -(-last // 8)], dtype=np.uint8)
        bits = np.unpackbits(octets, bitorder="little")[first % 8 :][:frame_bits]
        yield StoredFrame(
            index=index,
            values=bits.reshape(layout.rows, layout.columns),
            photometric=text(dataset, "PhotometricInterpretation"),
            decoder=codecs.decoder(syntax),
        )


def _native(dataset: Dataset, syntax: UID, layout: PixelLayout, indices: Sequence[int]) -> Iterator[StoredFrame]:
    shift = _unused_high_bits(dataset, syntax)
    arrays = get_decoder(syntax).iter_array(dataset, indices=indices, **_options(shift))
    for index, (values, properties) in zip(indices, arrays, strict=True):
        yield _stored(index, values, properties, shift, syntax)


def _decoded(encoded: bytes, codestream: Codestream | None, dataset: Dataset, syntax: UID, index: int) -> StoredFrame:
    """All of a frame, by the plugin of its syntax."""
    alone = dataset.group_dataset(0x0028)
    alone.file_meta = dataset.file_meta
    alone.NumberOfFrames = 1
    if codestream is not None and codestream.signed:
        # PS3.5 8.2.4: what the codestream says is what it is decoded by. One that is unsigned under a header that says
        # signed has the bits of signed values; encoders did that for years, and it is left to pydicom.
        alone.PixelRepresentation = 1
    alone.add_new("PixelData", "OB", encapsulate([codecs.ended(encoded, syntax)], has_bot=False))
    shift = _unused_high_bits(dataset, syntax)
    values, properties = get_decoder(syntax).as_array(
        alone, index=0, decoding_plugin=codecs.plugin(syntax), **_options(shift)
    )
    return _stored(index, values, properties, shift, syntax)


def _options(shift: tuple[int, int] | None) -> dict[str, Any]:
    """Colours are turned into luminance by us, which is one channel of them or a product."""
    return {"raw": True, "allow_excess_frames": False, "correct_unused_bits": shift is None}


def _stored(
    index: int, values: npt.NDArray[Any], properties: dict[str, Any], shift: tuple[int, int] | None, syntax: UID
) -> StoredFrame:
    return StoredFrame(
        index=index,
        values=values if shift is None else _shifted(values, *shift),
        photometric=str(properties["photometric_interpretation"]),
        decoder=codecs.decoder(syntax),
    )


def _shrunk(
    encoded: bytes, codestream: Codestream | None, dataset: Dataset, syntax: UID, index: int, wanted: Wanted | None
) -> StoredFrame | None:
    """A frame at a part of its size; None where all of it has to be decoded."""
    signed, bits = (number(dataset, keyword) for keyword in ("PixelRepresentation", "BitsStored"))
    photometric = codecs.photometric(syntax, text(dataset, "PhotometricInterpretation"), codestream)
    if (
        wanted is None
        or codestream is None
        or photometric not in _PHOTOMETRIC_SHRUNK
        or codestream.signed != bool(signed)  # then its values are other ones (see pydicom's sign correction)
        or (syntax in codecs.JPEG and codestream.bits > (bits or 0))  # then some of its bits are not used
    ):
        return None
    try:
        found = shrinking.shrunk(encoded[codestream.start :], codestream, wanted, is_rgb=photometric == "RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
    ):  # what Pillow raises: whether the frame is damaged, decoding all of it says
        return None
    if found is None:
        return None
    # Colours come as their luminance, which is the Y of YBR_FULL.
    means = photometric if found.values.ndim == 2 else "YBR_FULL"
    return StoredFrame(index=index, values=found.values, photometric=means, decoder=found.decoder, box=found.box)


def _required(dataset: Dataset, keyword: str) -> int:
    found = number(dataset, keyword)
    if found is None:
        raise CorruptImage(f"the DICOM image does not say its {keyword}")
    return int(found)


def _checked(frame: bytes, syntax: UID, layout: PixelLayout) -> Codestream | None:
    """What a frame says of itself; refused where the header has another size, or less room for samples."""
    stated = read_codestream(frame)
    if stated is not None and stated.size != (layout.rows, layout.columns, layout.samples):
        raise CorruptImage("a frame of the DICOM image is not of the size that the header says")
    if stated is not None and stated.bits > max(8, layout.bits):
        raise CorruptImage(
            f"a frame of the DICOM image has samples of {stated.bits} bits; the header allocates {layout.bits}"
        )
    packed_bytes = layout.rows * layout.columns * layout.samples * layout.bits // 8
    if syntax == RLELossless and packed_bytes > _RLE_EXPANSION * len(frame):
        raise CorruptImage("a frame of the DICOM image is too short for the size that the header says")
    return stated


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return (table, lengths) if table and lengths else None


def _unused_high_bits(dataset: Dataset, syntax: UID) -> tuple[int, int] | None:
    """How far to shift values left and right, where High Bit is not Bits Stored - 1 as it has to be since 2009.

    pydicom ignores High Bit. Compressed values have no unused bits, except those of RLE.
    """
    if syntax not in codecs.NATIVE and syntax != RLELossless:
        return None
    allocated, stored, high = (number(dataset, kw) for kw in ("BitsAllocated", "BitsStored", "HighBit"))
    if "PixelData" not in dataset or allocated is None or stored is None or high is None or high == stored - 1:
        return None
    if not 1 <= stored <= high + 1 <= allocated or allocated < 8:
        return None
    return int(allocated - 1 - high), int(allocated - stored)


def _shifted(values: npt.NDArray[Any], left: int, right: int) -> npt.NDArray[Any]:
    shifted: npt.NDArray[Any] = np.right_shift(np.left_shift(values, left), right)
    return shifted
