"""What a header says about an image: coded terms to suggest names from, and what must never leave memory.

`coded` holds DICOM's defined terms and nothing else, so it may be stored and shown. `descriptions` are free text and
the identifiers are a patient's: a caller may compare and hash them, and keeps neither.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from deepmcat_core import defined_terms, sop_classes
from deepmcat_core.dicom_file import DicomFile, looks_like_dicom, read_dicom_file
from deepmcat_core.dicom_values import functional_group, numbers, text
from deepmcat_core.errors import ImageError
from deepmcat_core.frame import Limits
from deepmcat_core.translation import translated

DESCRIPTIONS = ("SeriesDescription", "StudyDescription", "ProtocolName")

# A plane within about 26 degrees of an anatomical one has its name; beyond that it is oblique.
PLANE_COSINE = 0.9
_PLANES = ("sagittal", "coronal", "axial")  # by the axis of the patient that the normal is along: x, y, z


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """coded: Modality, BodyPartExamined, ViewPosition, Laterality, SOPClass, Plane, those that there are.

    descriptions: free text by keyword. patient_id, series_uid, sop_uid: as they are, "" where absent.
    """

    coded: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    patient_id: str = ""
    series_uid: str = ""
    sop_uid: str = ""


def read_header(data: bytes, limits: Limits | None = None) -> Header:
    """The header of a DICOM image; an empty one for anything else. Never raises: what cannot be read is left out."""
    with suppress(ImageError), translated():
        if looks_like_dicom(data):
            return _header(read_dicom_file(data, limits or Limits(), with_pixels=False))
    return Header()


def _header(file: DicomFile) -> Header:
    dataset = file.dataset
    coded = {
        "Modality": _term(text(dataset, "Modality"), defined_terms.MODALITIES),
        "BodyPartExamined": _term(text(dataset, "BodyPartExamined"), defined_terms.BODY_PARTS),
        "ViewPosition": _term(text(dataset, "ViewPosition"), defined_terms.VIEW_POSITIONS),
        "SOPClass": UID(file.sop_class).name if sop_classes.is_known(file.sop_class) else "",
        "Plane": plane(_orientation(dataset)),
        "Laterality": _term(_laterality(dataset), defined_terms.LATERALITIES),
    }
    return Header(
        coded={key: value for key, value in coded.items() if value},
        descriptions={keyword: found for keyword in DESCRIPTIONS if (found := text(dataset, keyword))},
        patient_id=text(dataset, "PatientID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        sop_uid=text(dataset, "SOPInstanceUID"),
    )


def plane(orientation: tuple[float, ...]) -> str:
    """axial, coronal, sagittal or oblique, from the six numbers of Image Orientation (Patient); "" without them."""
    if len(orientation) != 6:
        return ""
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    if not length > 0:
        return ""
    cosines = np.abs(normal) / length
    axis = int(np.argmax(cosines))
    return _PLANES[axis] if cosines[axis] >= PLANE_COSINE else "oblique"


def _term(value: str, terms: frozenset[str]) -> str:
    """The value if it is a defined term, whatever its case; else ""."""
    return value.upper() if value.upper() in terms else ""


def _orientation(dataset: Dataset) -> tuple[float, ...]:
    group = functional_group(dataset, 0, "PlaneOrientationSequence")
    return numbers(dataset if group is None else group, "ImageOrientationPatient")


def _laterality(dataset: Dataset) -> str:
    anatomy = functional_group(dataset, 0, "FrameAnatomySequence")
    of_frame = text(anatomy, "FrameLaterality") if anatomy is not None else ""
    return of_frame or text(dataset, "ImageLaterality") or text(dataset, "Laterality")
