"""Promises of headers: DICOM's own terms and nothing else are coded, and no header raises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from deepmcat_core import defined_terms
from deepmcat_core.header import Header, plane, read_header

PIXELS = np.zeros((2, 2), dtype=np.uint8)


def test_defined_terms_are_coded(make_dicom):
    """Modality, body part, view, laterality, SOP class by its name, and the plane."""
    data = make_dicom(
        PIXELS,
        Modality="CT",
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        Laterality="L",
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
    )

    assert read_header(data).coded == {
        "Modality": "CT",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "SOPClass": "CT Image Storage",
        "Plane": "axial",
        "Laterality": "L",
    }


@pytest.mark.parametrize("keyword", ["Modality", "BodyPartExamined", "ViewPosition", "Laterality"])
def test_free_text_in_a_coded_element_is_left_out(keyword, make_dicom):
    """What is not a defined term may be anything, a name included."""
    assert keyword not in read_header(make_dicom(PIXELS, **{keyword: "JOHN DOE"})).coded


def test_case_does_not_make_a_term_illegal(make_dicom):
    """Writers use lower case, which the standard does not allow; the term is the same."""
    assert read_header(make_dicom(PIXELS, BodyPartExamined="Chest")).coded["BodyPartExamined"] == "CHEST"


def test_descriptions_and_identifiers_are_kept_apart(make_dicom):
    """Free text and identifiers are there for the caller's eyes, and not among the coded terms."""
    header = read_header(
        make_dicom(
            PIXELS, SeriesDescription="t2 tse", PatientID="P1", SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.4"
        )
    )

    assert header.descriptions == {"SeriesDescription": "t2 tse"}
    assert (header.patient_id, header.series_uid, header.sop_uid) == ("P1", "1.2.3", "1.2.4")
    assert set(header.coded) == {"SOPClass"}


@pytest.mark.parametrize(
    ("orientation", "name"),
    [
        ((1, 0, 0, 0, 1, 0), "axial"),
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
        ((1, 0, 0, 0, 0.94, 0.34), "axial"),  # 20 degrees
        ((1, 0, 0, 0, 0.71, 0.71), "oblique"),
        ((0, 0, 0, 0, 0, 0), ""),
        ((1, 0, 0, 1, 0, 0), ""),
        ((), ""),
    ],
)
def test_the_plane_is_that_of_the_nearest_axis(orientation, name):
    """Within about 26 degrees; beyond, it is oblique; without two directions, there is none."""
    assert plane(orientation) == name


def test_functional_groups_give_plane_and_laterality(make_dicom):
    """Enhanced objects keep them there."""
    orientation, anatomy, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    anatomy.FrameLaterality = "R"
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.FrameAnatomySequence = Sequence([anatomy])

    header = read_header(make_dicom(PIXELS, SharedFunctionalGroupsSequence=Sequence([shared])))

    assert (header.coded["Plane"], header.coded["Laterality"]) == ("sagittal", "R")


def test_a_deflated_header_is_read(make_dicom):
    """It is within the deflated part."""
    assert (
        read_header(make_dicom(PIXELS, Modality="MR", syntax=DeflatedExplicitVRLittleEndian)).coded["Modality"] == "MR"
    )


def test_one_bad_element_does_not_take_the_others(make_dicom):
    """What cannot be read is left out, and the rest is not."""
    data = make_dicom(PIXELS, Modality="CT", ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])
    assert read_header(data).coded["Plane"] == "axial"

    header = read_header(data.replace(b"1\\0\\0\\0\\1\\0", b"x\\y\\z\\0\\1\\0"))

    assert header.coded["Modality"] == "CT"
    assert "Plane" not in header.coded


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"nothing at all", bytes(200)])
def test_other_formats_have_an_empty_header(data):
    """Only DICOM has one."""
    assert read_header(data) == Header()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_header_raises(data, make_dicom):
    """Whatever is overwritten."""
    damaged = bytearray(make_dicom(PIXELS, Modality="CT", PatientID="P", PixelSpacing=[1, 1]))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    assert set(read_header(bytes(damaged)).coded) <= {
        "Modality", "BodyPartExamined", "ViewPosition", "SOPClass", "Plane", "Laterality",
    }  # fmt: skip


def test_terms_are_those_of_a_code_string():
    """VR CS: capitals, digits, underscore and space, 16 characters at most."""
    terms = defined_terms.BODY_PARTS | defined_terms.MODALITIES | defined_terms.VIEW_POSITIONS

    assert all(len(term) <= 16 and term.isalnum() and term.upper() == term for term in terms)
