"""What is read of a data set: the attributes that are named, one walk, and items when somebody asks for them."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from deepmcat_core import dicom_dataset
from deepmcat_core.dicom_dataset import ATTRIBUTES, SparseDataset
from deepmcat_core.dicom_file import read_dicom_file
from deepmcat_core.dicom_values import functional_group, item, number, numbers, texts
from deepmcat_core.errors import ImageTooLarge
from deepmcat_core.frame import Limits
from deepmcat_core.translation import translated

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
STEPS = np.arange(64, dtype=np.uint16).reshape(8, 8)
PIXEL_DATA = b"\xe0\x7f\x10\x00"
UNDEFINED = b"\xff\xff\xff\xff"
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)


def of(**attributes: object) -> Dataset:
    """A data set of attributes."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def read(data: bytes) -> SparseDataset:
    """The data set of a file."""
    return read_dicom_file(data, Limits()).dataset


def spliced(data: bytes, elements: bytes) -> bytes:
    """A file with more elements before its pixel data."""
    at = data.rindex(PIXEL_DATA)
    return data[:at] + elements + data[at:]


def sequence(group: int, number: int, items: bytes, vr: bytes = b"SQ", length: int | None = None) -> bytes:
    """A sequence in Explicit VR Little Endian; of undefined length where none is given, and then with its end."""
    tag = struct.pack("<HH", group, number)
    if length is None:
        return tag + vr + bytes(2) + UNDEFINED + items + SEQUENCE_END
    return tag + vr + bytes(2) + struct.pack("<L", length) + items


def test_what_code_names_is_what_is_read():
    """An attribute that some module asks for and nobody keeps would be absent everywhere, without a word."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
    try:
        import tables
    finally:
        sys.path.pop(0)
    named = {keyword for _, keyword in (*tables._named_keywords(), *tables.UNNAMED)}

    assert named - {"MediaStorageSOPClassUID", "TransferSyntaxUID"} == set(ATTRIBUTES)


def test_every_attribute_is_one_of_the_dictionary():
    """None is misspelt, and none is there twice."""
    assert len(dicom_dataset.WITH_PIXELS) == len(ATTRIBUTES) == len(set(ATTRIBUTES))


def test_what_is_not_named_is_not_kept(make_dicom):
    """A patient's name is not in memory as a value that anybody could log."""
    dataset = read(make_dicom(STEPS, PatientName="DOE^JOHN", PatientID="7"))

    assert "PatientName" not in dataset
    assert texts(dataset, "PatientID") == ("7",)


def test_values_are_those_of_pydicom(corpus):
    """Of every public file, each attribute that is no sequence has the value that dcmread finds."""
    compared = 0
    for path in corpus:
        data = path.read_bytes()
        with translated():
            theirs = pydicom.dcmread(io.BytesIO(data), force=True)
        try:
            with translated():
                ours = read(data)
        except Exception:  # what cannot be read is compared elsewhere
            continue
        for keyword in ATTRIBUTES:
            if keyword not in theirs or keyword.endswith("Sequence"):
                continue
            with translated():
                found, expected = ours.get(keyword), theirs.get(keyword)
            assert found == expected or found is expected is None, (path.name, keyword)
            compared += 1
    assert compared > 2000


@pytest.mark.parametrize("syntax", NATIVE)
def test_items_are_found_in_every_encoding(syntax, make_dicom):
    """Of a sequence in a sequence, by their number."""
    groups = [of(PixelMeasuresSequence=[of(PixelSpacing=[n + 1, 2])]) for n in range(3)]
    dataset = read(make_dicom(STEPS, syntax=syntax, PerFrameFunctionalGroupsSequence=groups))

    found = [numbers(functional_group(dataset, frame, "PixelMeasuresSequence"), "PixelSpacing") for frame in range(3)]

    assert found == [(1, 2), (2, 2), (3, 2)]
    assert functional_group(dataset, 3, "PixelMeasuresSequence") is None
    assert item(dataset, "SharedFunctionalGroupsSequence") is None


def test_the_groups_of_other_frames_are_not_read(make_dicom, monkeypatch):
    """Of many frames, an item for each frame that somebody asks for, and once."""
    groups = [of(PixelMeasuresSequence=[of(PixelSpacing=[n + 1, 2])]) for n in range(50)]
    dataset = read(make_dicom(STEPS, PerFrameFunctionalGroupsSequence=groups))
    walked = []
    walk: Callable[..., object] = dicom_dataset.item_outline
    monkeypatch.setattr(dicom_dataset, "item_outline", lambda *given: (walked.append(1), walk(*given))[1])

    for _ in range(3):
        measures = functional_group(dataset, 40, "PixelMeasuresSequence")
        assert measures is not None
        assert numbers(measures, "PixelSpacing") == (41, 2)

    assert len(walked) == 2  # the frame's group, and the item within it


def test_delimited_items_end_where_they_end(make_dicom):
    """What follows an item of undefined length belongs to the next one."""
    slope = b"\x28\x00\x53\x10DS\x02\x00"
    items = b"".join(ITEM + UNDEFINED + slope + value + ITEM_END for value in (b"1 ", b"2 "))
    data = spliced(make_dicom(STEPS), sequence(0x5200, 0x9230, items))

    found = [item(read(data), "PerFrameFunctionalGroupsSequence", n) for n in range(3)]

    assert [number(group, "RescaleSlope") for group in found if group is not None] == [1, 2]
    assert found[2] is None


@pytest.mark.parametrize("defined", [True, False])
def test_a_sequence_of_unknown_vr_is_read_as_implicit(defined, make_dicom):
    """PS3.5 6.2.2: who passed it on without knowing the attribute wrote UN, and left it as it was."""
    items = ITEM + struct.pack("<L", 10) + b"\x28\x00\x53\x10" + struct.pack("<L", 2) + b"3 "
    data = spliced(make_dicom(STEPS), sequence(0x5200, 0x9229, items, vr=b"UN", length=len(items) if defined else None))

    shared = item(read(data), "SharedFunctionalGroupsSequence")

    assert shared is not None
    assert number(shared, "RescaleSlope") == 3


def test_text_within_items_is_in_the_character_set_of_the_data_set(make_dicom):
    """Where an item has none of its own."""
    sets = {"SpecificCharacterSet": "ISO_IR 192"}
    inner = of(SeriesDescription="Größe")
    dataset = read(make_dicom(STEPS, **sets, SharedFunctionalGroupsSequence=[inner]))

    shared = item(dataset, "SharedFunctionalGroupsSequence")

    assert shared is not None
    assert texts(shared, "SeriesDescription") == ("Größe",)


def test_an_unknown_vr_is_taken_as_the_parser_takes_it(make_dicom):
    """Two bytes that are no letters are a length; two letters that are no VR have a short one."""
    odd = b"\x18\x00\x00\x11\x04\x00\x00\x00null" + b"\x18\x00\x01\x11ZZ\x02\x00xx"
    at = (data := make_dicom(STEPS)).index(b"\x28\x00\x02\x00")
    dataset = read(data[:at] + odd + data[at:])

    assert number(dataset, "Rows") == 8
    assert len(dataset.PixelData) == 128


def test_what_holds_a_sequence_is_something(make_dicom):
    """Who asks whether there is a group at all is told so, whatever is in it."""
    inside = (of(VOILUTSequence=[of(LUTDescriptor=[1, 0, 8])]), of(PatientComments="not kept"), of())
    dataset = read(make_dicom(STEPS, PerFrameFunctionalGroupsSequence=inside))

    assert [bool(item(dataset, "PerFrameFunctionalGroupsSequence", n)) for n in range(3)] == [True, True, False]


def test_items_without_number_make_no_objects(make_dicom):
    """A quarter of a million empty items are counted, and none of them is read until it is asked for."""
    many = 240_000
    data = spliced(make_dicom(STEPS), sequence(0x5200, 0x9230, (ITEM + bytes(4)) * many))

    dataset = read(data)

    assert dataset._items == {}
    assert item(dataset, "PerFrameFunctionalGroupsSequence", many - 1) is not None
    assert item(dataset, "PerFrameFunctionalGroupsSequence", many) is None
    assert len(dataset._items) == 2


def fragments(*parts: bytes) -> bytes:
    """Encapsulated data behind an empty offset table, with its end."""
    return b"".join(ITEM + struct.pack("<L", len(part)) + part for part in (b"", *parts)) + SEQUENCE_END


def long_element(group: int, number: int, vr: bytes, value: bytes, length: bytes = UNDEFINED) -> bytes:
    """An element with a length of four bytes in Explicit VR Little Endian."""
    return struct.pack("<HH", group, number) + vr + bytes(2) + length + value


@pytest.mark.parametrize("odd", [b"\xfe\xff\xdd\xe0\x01\x02", b"\x28\x00\x10\x00US\xff\xff" * 9, bytes(range(250))])
def test_encapsulated_data_before_the_image_are_passed_over(odd, make_dicom):
    """Of an icon (PS3.3 C.7.6.1.1.6) or private: whatever their bytes look like, what comes after is read."""
    plain = make_dicom(STEPS)
    icon = long_element(0x7FE0, 0x0010, b"OB", fragments(odd, odd))
    for elements in (
        sequence(0x0088, 0x0200, ITEM + UNDEFINED + icon + ITEM_END),
        sequence(0x0088, 0x0200, ITEM + struct.pack("<L", len(icon)) + icon),
        struct.pack("<HH2sH", 0x0099, 0x0010, b"LO", 4) + b"MINE" + long_element(0x0099, 0x1001, b"OB", fragments(odd)),
    ):
        found = read(spliced(plain, elements))

        assert (found.Rows, found.Columns) == STEPS.shape
        assert found.PixelData == STEPS.tobytes()


def test_encapsulated_data_that_do_not_end_are_broken_off(make_dicom):
    """Nothing after them can be found."""
    data = spliced(make_dicom(STEPS), long_element(0x0099, 0x1001, b"OB", ITEM + struct.pack("<L", 4) + b"abcd"))
    assert "PixelData" not in read(data)


def test_fragments_count_as_elements(make_dicom):
    """A flood of them before the image is refused as one of elements is."""
    flood = long_element(0x0099, 0x1001, b"OB", fragments(*[b""] * (Limits().max_elements + 1)))
    with pytest.raises(ImageTooLarge, match="elements"):
        read(spliced(make_dicom(STEPS), flood))


def test_a_long_character_set_counts_as_absent(make_dicom):
    """Each of its values would be looked up; a few are allowed, and text is read as if there were none."""
    assert read(make_dicom(STEPS, SpecificCharacterSet="ISO_IR 192")).original_character_set == ["UTF8"]
    long = long_element(0x0008, 0x0005, b"UC", b"\\".join([b"ISO_IR 192"] * 500), struct.pack("<L", 5499))
    data = make_dicom(STEPS)
    at = data.index(b"\x08\x00\x16\x00")
    assert read(data[:at] + long + data[at:]).original_character_set == read(data).original_character_set


@pytest.mark.parametrize(
    "tag", [(0x0008, 0x0016), (0x0008, 0x0008), (0x0028, 0x0004), (0x0028, 0x0006), (0x0028, 0x0101), (0x0028, 0x1052)]
)
@pytest.mark.parametrize("vr", [b"UC", b"UN", b"UT", b"OB"])
def test_a_value_longer_than_its_kind_counts_as_absent(tag, vr, make_dicom):
    """Megabytes of text under the tag of a few characters are never made values of, whoever asks."""
    short, long = (long_element(*tag, vr, b"1.5\\" * n, struct.pack("<L", 4 * n)) for n in (1024, 1025))

    assert tag in read(spliced(make_dicom(STEPS), short))
    assert tag not in read(spliced(make_dicom(STEPS), long))


@pytest.mark.parametrize("vr", [b"UC", b"UT", b"SV", b"OB", b"OW", b"UN"])
@pytest.mark.parametrize("tag", [(0x0028, 0x1201), (0x7FE0, 0x0001), (0x7FE0, 0x0010)])
def test_long_tables_and_pixels_are_bytes(tag, vr, make_dicom):
    """Whatever VR they are written with; as text, each megabyte would cost a tenth of a second."""
    value = b"1.5\\" * 2000
    data = make_dicom(STEPS)
    at = data.rindex(PIXEL_DATA)

    found = read(data[:at] + long_element(*tag, vr, value, struct.pack("<L", len(value))))

    assert found[tag].value == value
