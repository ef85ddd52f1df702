"""The data set of a DICOM object as pydicom has it, but for what nobody asks for.

It holds the attributes that are read, as bytes until one is touched; pydicom makes values of them then. A sequence is
read item by item: of a hundred thousand frames, the groups of those that are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, TagType

from deepmcat_core.dicom_structure import (
    DOUBLE_FLOAT_PIXEL_DATA,
    FLOAT_PIXEL_DATA,
    PIXEL_DATA,
    Encoding,
    Outline,
    item_outline,
)
from deepmcat_core.frame import Limits

# Every attribute that is read of a data set or its items, of whatever is decoded or prepared. docs/conformance.md lists
# them with what each is read for; what is not here is not there for anybody.
ATTRIBUTES = (
    "SpecificCharacterSet", "ImageType", "RecognitionCode", "SOPClassUID", "SOPInstanceUID", "Modality",
    "StudyDescription", "SeriesDescription", "PixelPresentation", "PatientID", "BodyPartExamined", "ProtocolName",
    "ImagerPixelSpacing", "ViewPosition", "SeriesInstanceUID", "ImageOrientationPatient", "Laterality",
    "ImageLaterality", "FrameAnatomySequence", "FrameLaterality", "PlaneOrientationSequence", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "PixelSpacing",
    "PixelAspectRatio", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit", "BurnedInAnnotation",
    "PixelIntensityRelationship", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope",
    "VOILUTFunction", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData", "ModalityLUTSequence",
    "LUTDescriptor", "LUTData", "VOILUTSequence", "PixelMeasuresSequence", "FrameVOILUTSequence",
    "PixelValueTransformationSequence", "PresentationLUTShape", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData",
    "DoubleFloatPixelData", "PixelData",
)  # fmt: skip

MAX_BYTES = 4096  # of an element that has a few values; pydicom would convert a million of them, one by one

# What may be longer: tables and pixels. They are bytes, whatever VR they were written with.
_BULK = frozenset(
    tag_for_keyword(keyword)
    for keyword in ATTRIBUTES
    if keyword.endswith(("LookupTableData", "LUTData", "PixelData")) or keyword.startswith("ExtendedOffsetTable")
)
_BULK_VRS = frozenset({None, "OB", "OD", "OF", "OL", "OV", "OW", "SS", "UN", "US"})

_CHARACTER_SET = 0x00080005
_MAX_CHARACTER_SET_BYTES = 1024  # a few names of sets; each is looked up, so a longer one counts as absent
_PIXELS = frozenset({FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA})

WITH_PIXELS: Mapping[int, BaseTag] = {
    tag: BaseTag(tag) for keyword in ATTRIBUTES if (tag := tag_for_keyword(keyword)) is not None
}
_TAGS = {keyword: WITH_PIXELS[tag] for keyword in ATTRIBUTES if (tag := tag_for_keyword(keyword)) is not None}
WITHOUT_PIXELS: Mapping[int, BaseTag] = {tag: base for tag, base in WITH_PIXELS.items() if tag not in _PIXELS}


class SparseDataset(Dataset):
    """A data set, or an item, of which the outline was walked. What is longer than it may be is not there.

    character_set: of what it is in, in the words of Python; its own wins.
    """

    def __init__(
        self, data: bytes, seen: Outline, encoding: Encoding, limits: Limits, character_set: list[str] | None = None
    ) -> None:
        elements: dict[BaseTag, DataElement | RawDataElement] = {
            tag: kept for tag, raw in seen.elements.items() if (kept := _bounded(raw)) is not None
        }
        super().__init__(elements)
        self._data = data
        self._limits = limits
        self._sequences = seen.items
        self._is_empty = seen.is_empty
        self._items: dict[tuple[str, int], SparseDataset | None] = {}
        own = seen.elements.get(WITH_PIXELS[_CHARACTER_SET])
        if own is not None and len(own.value or b"") <= _MAX_CHARACTER_SET_BYTES:
            character_set = convert_encodings(convert_raw_data_element(own).value)
        self._python_encodings = character_set
        self.set_original_encoding(encoding.implicit, encoding.little_endian, character_set or convert_encodings(None))

    def __bool__(self) -> bool:
        """Whether there is anything in it, kept or not: an item that holds but a sequence is something."""
        return not self._is_empty

    def __contains__(self, name: TagType) -> bool:
        """As in any data set, without pydicom's search for what a keyword may be."""
        return super().__contains__(_TAGS.get(name, name) if isinstance(name, str) else name)

    def __getitem__(self, key: Any) -> Any:
        """As in any data set, without pydicom's search for what a keyword may be."""
        return super().__getitem__(_TAGS.get(key, key) if isinstance(key, str) else key)

    def item(self, keyword: str, number: int = 0) -> SparseDataset | None:
        """An item of a sequence, as it is however often it is asked for; None where there is none of that number."""
        key = keyword, number
        if key not in self._items:
            self._items[key] = self._read(keyword, number)
        return self._items[key]

    def _read(self, keyword: str, number: int) -> SparseDataset | None:
        items = self._sequences.get(tag_for_keyword(keyword) or 0)
        if items is None or number >= len(items.offsets):
            return None
        seen, encoding = item_outline(self._data, items.offsets[number], items.encoding, self._limits, WITHOUT_PIXELS)
        return SparseDataset(self._data, seen, encoding, self._limits, self._python_encodings)


def _bounded(raw: RawDataElement) -> RawDataElement | None:
    """An element that costs no more to convert than it should; None where it is longer than any of its kind."""
    if raw.length <= MAX_BYTES:
        return raw
    if raw.tag not in _BULK:
        return None
    return raw if raw.VR in _BULK_VRS else raw._replace(VR="OB")
