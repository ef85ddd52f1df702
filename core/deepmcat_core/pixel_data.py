"""Stored values of the frames that are used, and of no others.

What the header claims is checked before anything is decoded: sides, decoded bytes, number of frames against what is
there, and the size that a compressed frame states itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, RLELossless

from deepmcat_core import codecs
from deepmcat_core.codestream import CodestreamSize, codestream_size
from deepmcat_core.dicom_values import number
from deepmcat_core.errors import CorruptImage, UnsupportedImage
from deepmcat_core.frame import Limits

BITS_READ = (1, 8, 16, 32, 64)

# Samples of 12 bits without gaps were allowed at first; 1 and the multiples of 8 are today (PS3.5 8.1.1).
_BITS_LEGAL = frozenset({1, 12, *range(8, 65, 8)})

ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

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
    """values: (H, W) or (H, W, 3) as stored. photometric: what they mean after decoding, such as MONOCHROME2 or RGB."""

    index: int
    values: npt.NDArray[Any]
    photometric: str


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


def stored_frames(
    dataset: Dataset, syntax: UID, layout: PixelLayout, indices: Sequence[int], limits: Limits
) -> Iterator[StoredFrame]:
    """Decode the frames of `indices`, one at a time. Raises ImageError, and may raise what pydicom raises."""
    limits.check_frames(len(indices))
    limits.check_decoded_bytes(layout.frame_bytes * len(indices))
    if syntax not in codecs.NATIVE:
        _check_fragments(dataset, syntax, layout, indices)
    shift = _unused_high_bits(dataset, syntax)
    arrays = get_decoder(syntax).iter_array(
        dataset,
        indices=indices,
        raw=True,  # colours are turned into luminance here, which is one channel of them or a product
        decoding_plugin=codecs.plugin(syntax),
        allow_excess_frames=False,
        correct_unused_bits=shift is None,
    )
    for index, (values, properties) in zip(indices, arrays, strict=True):
        yield StoredFrame(
            index=index,
            values=values if shift is None else _shifted(values, *shift),
            photometric=str(properties["photometric_interpretation"]),
        )


def _required(dataset: Dataset, keyword: str) -> int:
    found = number(dataset, keyword)
    if found is None:
        raise CorruptImage(f"the DICOM image does not say its {keyword}")
    return int(found)


def _check_fragments(dataset: Dataset, syntax: UID, layout: PixelLayout, indices: Sequence[int]) -> None:
    """Refuse more frames than there are fragments, and frames that state another size than the header."""
    data: bytes = dataset.PixelData
    fragments = parse_fragments(data)[0] - 1  # the first item is the Basic Offset Table
    if layout.frames > max(fragments, 0):
        raise CorruptImage(f"the DICOM image claims {layout.frames} frames and has {fragments} fragments")
    for index in indices:
        frame = get_frame(data, index, number_of_frames=layout.frames, extended_offsets=_extended_offsets(dataset))
        stated = codestream_size(frame)
        expected = CodestreamSize(layout.rows, layout.columns, layout.samples)
        if stated is not None and stated != expected:
            raise CorruptImage("a frame of the DICOM image is not of the size that the header says")
        packed_bytes = layout.rows * layout.columns * layout.samples * layout.bits // 8
        if syntax == RLELossless and packed_bytes > _RLE_EXPANSION * len(frame):
            raise CorruptImage("a frame of the DICOM image is too short for the size that the header says")


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
