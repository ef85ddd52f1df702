"""Lookup tables of DICOM: modality, VOI and palette share one shape (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from deepmcat_core.dicom_values import in_sign, numbers, text
from deepmcat_core.errors import CorruptImage
from deepmcat_core.frame import FloatPlane
from deepmcat_core.intensity import luminance

MAX_ENTRIES = 65536

# Of the palette of each colour: what it is like, its entries, and those in segments.
_DESCRIPTORS = (
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
)
_ENTRIES = ("RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData")
_SEGMENTS = (
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupTable:
    """entries: (N,) float32. first: the input that the first entry is for. top: the greatest output there may be."""

    entries: npt.NDArray[np.float32]
    first: int
    top: float

    def apply(self, values: npt.NDArray[Any]) -> FloatPlane:
        """The entries for the values; values outside the table take its first or last entry."""
        first = self.first
        if values.dtype.kind == "f":
            nearest = np.rint(np.nan_to_num(values))
        else:
            top = np.iinfo(values.dtype).max
            # A first value that no input can reach is a negative one that was written without a sign.
            first -= 2**16 if first > max(top, 2**15 - 1) else 0
            nearest = np.minimum(values, min(top, 2**32)).astype(np.intp)  # else -1 would have to be a uint8
        index: npt.NDArray[np.intp] = np.clip(nearest, first, first + len(self.entries) - 1).astype(np.intp) - first
        return self.entries[index]


def read_lookup_table(item: Dataset, *, signed: bool, little_endian: bool) -> LookupTable:
    """The table of an item of a Modality or VOI LUT Sequence. signed: its input may be. Raises CorruptImage."""
    count, first, bits = _descriptor(item, "LUTDescriptor", signed=signed)
    data = item.get("LUTData")
    if isinstance(data, bytes):
        entries = _unpacked(data, count, bits, little_endian=little_endian)
    else:
        entries = np.asarray(numbers(item, "LUTData"), dtype=np.float32)
    if not entries.size:
        raise CorruptImage("a lookup table of the DICOM object has no entries")
    top = float(2 ** min(bits, 16) - 1) if bits >= 1 else 65535.0
    return LookupTable(entries=entries[:count], first=first, top=max(top, float(entries.max())))


def has_supplemental_palette(dataset: Dataset) -> bool:
    """Whether a monochrome image has colours for its highest values, such as a map over anatomy (PS3.3 C.7.6.19)."""
    return text(dataset, "PixelPresentation") in ("COLOR", "MIXED") and _DESCRIPTORS[0] in dataset


def read_supplemental_palette(dataset: Dataset, *, signed: bool, little_endian: bool) -> LookupTable | None:
    """The palette for the values from its `first` on, as luminance; None where there is none. Raises CorruptImage."""
    if not has_supplemental_palette(dataset):
        return None
    return read_palette(dataset, signed=signed, little_endian=little_endian)


def read_palette(dataset: Dataset, *, signed: bool, little_endian: bool) -> LookupTable:
    """The palette of a PALETTE COLOR image as luminance from 0 to 1. signed: its input is. Raises CorruptImage."""
    channels, depths = [], []
    for descriptor, plain_keyword, segmented_keyword in zip(_DESCRIPTORS, _ENTRIES, _SEGMENTS, strict=True):
        count, first, bits = _descriptor(dataset, descriptor, signed=signed)
        depths.append(bits)
        plain, segmented = dataset.get(plain_keyword), dataset.get(segmented_keyword)
        if isinstance(plain, bytes) and plain:
            channels.append(_unpacked(plain, count, bits, little_endian=little_endian)[:count])
        elif isinstance(segmented, bytes) and segmented:
            channels.append(_expanded(segmented, count, 1 if bits == 8 else 2, little_endian=little_endian))
        else:
            raise CorruptImage("the DICOM object is a palette image without a palette")
    if not channels[0].size or len({channel.size for channel in channels}) != 1:
        raise CorruptImage("the palette of the DICOM object has no entries, or not the same number for every colour")
    colours = np.stack(channels, axis=1)  # (N, 3)
    # Entries of a palette of 8 bits may fill words of 16; one of 16 bits may well be dark, and says what white is.
    white = 255.0 if max(depths) <= 8 and colours.max() <= 255 else 65535.0
    return LookupTable(entries=luminance(colours, white), first=first, top=1.0)


def _descriptor(item: Dataset, keyword: str, *, signed: bool) -> tuple[int, int, int]:
    """Number of entries (0 means 65536), first mapped value in the sign of the input, bits of an entry."""
    descriptor = numbers(item, keyword)
    if len(descriptor) != 3:
        raise CorruptImage("a lookup table of the DICOM object has no descriptor of three numbers")
    count, first, bits = (int(in_sign(v, signed=s)) for v, s in zip(descriptor, (False, signed, False), strict=True))
    return (count if 0 < count <= MAX_ENTRIES else MAX_ENTRIES), first, bits


def _unpacked(data: bytes, count: int, bits: int, *, little_endian: bool) -> npt.NDArray[np.float32]:
    """(N,) entries of 8 or 16 bits; those of 8 may come in words of 16, and then the length says so."""
    wide = bits > 8 or len(data) >= 2 * count
    dtype = np.dtype("u2" if wide else "u1").newbyteorder("<" if little_endian else ">")
    usable = len(data) - len(data) % dtype.itemsize
    return np.frombuffer(data[:usable], dtype=dtype).astype(np.float32)


def _expanded(data: bytes, count: int, width: int, *, little_endian: bool) -> npt.NDArray[np.float32]:
    """(N,) entries of a segmented palette (PS3.3 C.7.9.2), never more than `count`, however long it claims to be."""
    usable = len(data) - len(data) % width
    order = "<" if little_endian else ">"
    words = struct.unpack(f"{order}{usable // width}{'BH'[width - 1]}", data[:usable])
    entries: list[float] = []
    for number, segment in enumerate(_segments(words, width)):
        if number > count:  # each makes an entry at least, but for those that would keep us here
            raise CorruptImage("the segmented palette of the DICOM object has more segments than entries")
        entries.extend(segment if isinstance(segment, tuple) else _line(entries, *segment))
        if len(entries) >= count:
            break
    return np.asarray(entries[:count], dtype=np.float32)


def _line(entries: list[float], length: int, end: int) -> list[float]:
    if not entries:
        raise CorruptImage("the segmented palette of the DICOM object starts with a line from nowhere")
    start = entries[-1]
    return [round(start + (end - start) * (step + 1) / length) for step in range(length)]


def _segments(words: tuple[int, ...], width: int) -> Iterator[tuple[int, ...] | list[int]]:
    """Discrete segments as tuples of entries, linear ones as [length, end]; indirect ones as what they point to."""
    position = 0
    while position + 1 < len(words):
        opcode, length = words[position], words[position + 1]
        if opcode == 2:
            # The offset, in bytes, is 32 bits, least significant word first.
            parts = words[position + 2 : position + 2 + 4 // width]
            start = sum(part << (8 * width * i) for i, part in enumerate(parts)) // width
            yield from _direct_segments(words, start, length)
            position += 2 + 4 // width
            continue
        yield from _direct_segments(words, position, 1)
        position += 2 + (length if opcode == 0 else 1)


def _direct_segments(words: tuple[int, ...], start: int, segments: int) -> Iterator[tuple[int, ...] | list[int]]:
    for _ in range(segments):
        if start + 1 >= len(words) or words[start] > 1:
            raise CorruptImage("the segmented palette of the DICOM object has an unknown kind of segment")
        opcode, length = words[start], words[start + 1]
        if opcode == 0:
            yield words[start + 2 : start + 2 + length]
            start += 2 + length
        else:
            yield [length, *words[start + 2 : start + 3]]
            start += 3
