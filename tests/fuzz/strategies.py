"""Hypothesis strategies: files whole and damaged, headers that lie, raw planes that do.

Damage is drawn as names and seeds, so that what fails shrinks to fewer steps and prints as something to read.
"""

from __future__ import annotations

from hypothesis import reject
from hypothesis import strategies as st

from deepmcat_core.frame import RawPlane

from .objects import CANARY_TEXT, KINDS, make_dataset, write_object
from .specimens import ORIGINALS, Specimen, damages_of

SEEDS = st.integers(0, 2**32 - 1)
MAX_STEPS = 4

_WORDS = st.one_of(st.integers(0, 65535), st.sampled_from([0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 31, 32, 64, 65535]))
_NUMBERS = st.one_of(
    st.sampled_from(["", "0", "-0", "1", "-1", "1e30", "-1e308", "1e-300", "0.5"]),
    st.floats(-1e6, 1e6).map(lambda value: f"{value:.6g}"),
)
_PHOTOMETRIC = st.sampled_from(
    ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422",
     "YBR_PARTIAL_420", "PALETTE COLOR", "HSV", "", CANARY_TEXT]
)  # fmt: skip

# What a header may say, in a type that can be written.
_LIES: dict[str, st.SearchStrategy[object]] = {
    "Rows": _WORDS,
    "Columns": _WORDS,
    "SamplesPerPixel": _WORDS,
    "BitsAllocated": _WORDS,
    "BitsStored": _WORDS,
    "HighBit": _WORDS,
    "PixelRepresentation": _WORDS,
    "PlanarConfiguration": _WORDS,
    "NumberOfFrames": st.one_of(st.integers(-1, 9), st.sampled_from([64, 50_000, 2**31 - 1])),
    "PhotometricInterpretation": _PHOTOMETRIC,
    "PixelPaddingValue": st.integers(0, 65535),
    "PixelPaddingRangeLimit": st.integers(0, 65535),
    "RescaleSlope": _NUMBERS,
    "RescaleIntercept": _NUMBERS,
    "WindowCenter": st.one_of(_NUMBERS, st.lists(_NUMBERS, max_size=3)),
    "WindowWidth": st.one_of(_NUMBERS, st.lists(_NUMBERS, max_size=3)),
    "VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "", CANARY_TEXT]),
    "PixelSpacing": st.lists(_NUMBERS, max_size=3),
    "PresentationLUTShape": st.sampled_from(["INVERSE", "IDENTITY", CANARY_TEXT]),
    "SpecificCharacterSet": st.sampled_from(["ISO_IR 192", "ISO 2022 IR 87", CANARY_TEXT]),
    "SOPClassUID": st.sampled_from(["", "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3", "1.2.840.10008.5.1.4.1.1.66.4"]),
    "RedPaletteColorLookupTableDescriptor": st.lists(_WORDS, min_size=1, max_size=4),
    "GreenPaletteColorLookupTableDescriptor": st.lists(_WORDS, min_size=3, max_size=3),
    "RedPaletteColorLookupTableData": st.binary(max_size=40),
    "SegmentedRedPaletteColorLookupTableData": st.binary(max_size=40),
}


@st.composite
def specimens(draw: st.DrawFn) -> Specimen:
    """A file of any kind after some damage."""
    kind = draw(st.sampled_from(list(ORIGINALS)))
    steps = draw(st.lists(st.tuples(st.sampled_from(damages_of(kind)), SEEDS), max_size=MAX_STEPS))
    return Specimen(kind, draw(st.integers(0, 19)), tuple(steps))


@st.composite
def lying_objects(draw: st.DrawFn) -> tuple[bytes, tuple[int, int]]:
    """A DICOM file whose pixels are not what its header says, and the rows and columns that it says."""
    syntax, content = draw(st.sampled_from(KINDS))
    names = draw(st.lists(st.sampled_from(list(_LIES)), min_size=1, max_size=4, unique=True))
    lies = {name: draw(_LIES[name]) for name in names}
    dataset, syntax = make_dataset(syntax, content, draw(st.integers(0, 19)), lies)
    try:
        return write_object(dataset, syntax), (dataset.Rows, dataset.Columns)
    except OSError:  # a number that is too great for the sign of the pixels, which pydicom does not write
        reject()


@st.composite
def raw_planes(draw: st.DrawFn) -> RawPlane:
    """A raw plane of as many bytes as it needs, or of others."""
    rows, columns = draw(st.integers(-1, 9)), draw(st.integers(-1, 9))
    sample_type = draw(st.sampled_from(["uint8", "uint16", "int16", "float32"]))
    size = {"uint8": 1, "float32": 4}.get(sample_type, 2)
    right = max(0, rows) * max(0, columns) * size
    count = draw(st.one_of(st.just(right), st.integers(0, 400)))
    data = draw(st.binary(min_size=count, max_size=count))
    return RawPlane(rows=rows, columns=columns, sample_type=sample_type, data=data, inverted=draw(st.booleans()))
