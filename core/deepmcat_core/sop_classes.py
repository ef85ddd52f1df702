"""What kind of object a DICOM object is, by its SOP class: never by its Modality, which is free to lie (PS3.4 B.5)."""

from __future__ import annotations

from pydicom.uid import UID

# Storage classes of pixels to look at whose names do not say "Image".
_IMAGES_BY_ANOTHER_NAME = frozenset(
    {
        "CornealTopographyMapStorage",
        "EnhancedUSVolumeStorage",
        "OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage",
        "OphthalmicThicknessMapStorage",
        "ParametricMapStorage",
        "RTDoseStorage",
        "SegmentationStorage",
    }
)

_COMPUTED = frozenset(
    {
        "CornealTopographyMapStorage",
        "OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage",
        "OphthalmicThicknessMapStorage",
        "ParametricMapStorage",
        "RTDoseStorage",
        "SegmentationStorage",
    }
)

_TEXT_IS_USUAL = ("SecondaryCaptureImageStorage", "UltrasoundImageStorage", "UltrasoundMultiFrameImageStorage")


def is_known(sop_class: str) -> bool:
    """Whether the standard has this SOP class."""
    return UID(sop_class).type == "SOP Class" if sop_class else False


def is_image(sop_class: str) -> bool:
    """Whether a known SOP class is one of images. SR, KO, PR, PDF, plans, waveforms, raw data, DICOMDIR … are not."""
    keyword = UID(sop_class).keyword
    return keyword in _IMAGES_BY_ANOTHER_NAME or ("Image" in keyword and "Storage" in keyword)


def is_computed(sop_class: str) -> bool:
    """Whether the pixels were computed rather than acquired: segmentations, dose, maps."""
    return bool(sop_class) and UID(sop_class).keyword in _COMPUTED


def is_secondary_capture(sop_class: str) -> bool:
    """Whether it is a screenshot, a scan of film, a dose report page …, single frame or multi-frame."""
    return bool(sop_class) and "SecondaryCaptureImageStorage" in UID(sop_class).keyword


def often_has_text(sop_class: str) -> bool:
    """Whether text in the pixels is usual: screenshots and ultrasound."""
    return bool(sop_class) and any(name in UID(sop_class).keyword for name in _TEXT_IS_USUAL)
