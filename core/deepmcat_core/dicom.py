"""From the bytes of a DICOM image to frames.

    bytes ─dicom_file─► data set ─► an image at all? ─pixel_data─► stored values of the frames used
          ─► monochrome: dicom_grey · palette: lookup_table · colour: luminance ─► Frame with its pixel aspect

Colours become luminance by Rec. 601 and get neither modality LUT nor window, which are for monochrome (PS3.3 C.11.1).
"""

from __future__ import annotations

from dataclasses import replace

from pydicom.dataset import Dataset
from pydicom.uid import UID

from deepmcat_core import codecs, shrinking, sop_classes
from deepmcat_core.dicom_file import DicomFile, read_dicom_file
from deepmcat_core.dicom_grey import is_inverted, is_linear, monochrome
from deepmcat_core.dicom_values import functional_group, number, numbers, text, texts
from deepmcat_core.errors import CorruptImage, NotAnImage, UnsupportedImage
from deepmcat_core.frame import FloatPlane, Frame, FramePolicy, Image, ImageFlag, Intensity, Limits
from deepmcat_core.intensity import luminance, percents, scale
from deepmcat_core.levels import by_level
from deepmcat_core.lookup_table import read_palette
from deepmcat_core.pixel_data import ELEMENTS, StoredFrame, complete, pixel_layout, stored_frames
from deepmcat_core.shrinking import Wanted

MAX_ASPECT = 16.0  # of a pixel; beyond it, either way, a spacing is a mistake

_OTHER_COLOURS = frozenset({"HSV", "ARGB", "CMYK"})  # PS3.3 C.7.6.3.1.2, retired


def decode_dicom(
    data: bytes, *, intensity: Intensity, frames: FramePolicy, limits: Limits, side: int | None = None
) -> Image:
    """The frames that the policy asks for. Raises ImageError, and what pydicom raises, which `decode` translates.

    side: see `decode`.
    """
    file = read_dicom_file(data, limits)
    _require_image(file)
    layout = pixel_layout(file.dataset, limits)
    complete(file.dataset, layout)
    indices = frames.indices(layout.frames)

    def wanted(frame: int) -> Wanted | None:
        if side is None or not is_linear(file.dataset, frame, intensity):
            return None
        each = shrinking.pixels_each(layout.rows, layout.columns, pixel_aspect(file.dataset, frame), side)
        return Wanted(pixels_each=each, percents=percents(intensity, inverted=is_inverted(file.dataset)))

    decoded, decoders = [], set()
    for stored in stored_frames(file.dataset, file.transfer_syntax, layout, indices, limits, wanted):
        decoded.append(_frame(file, stored, intensity))
        decoders.add(stored.decoder)
    return Image(
        frames=tuple(decoded),
        total_frames=layout.frames,
        format="dicom",
        decoder=", ".join(sorted(decoders)),
        flags=image_flags(file),
    )


def image_flags(file: DicomFile) -> frozenset[ImageFlag]:
    """What is worth knowing about an image that does not change its assignment."""
    dataset, sop_class = file.dataset, file.sop_class
    kinds = texts(dataset, "ImageType")
    burned_in = text(dataset, "BurnedInAnnotation")
    found = {
        ImageFlag.DERIVED: kinds[:1] == ("DERIVED",) or sop_classes.is_computed(sop_class),
        ImageFlag.LOCALIZER: "LOCALIZER" in kinds,
        ImageFlag.SECONDARY_CAPTURE: sop_classes.is_secondary_capture(sop_class),
        ImageFlag.BURNED_IN_TEXT_POSSIBLE: burned_in == "YES"
        or (burned_in != "NO" and sop_classes.often_has_text(sop_class)),
        ImageFlag.OVERLAYS_IGNORED: file.outline.has_overlays,
        ImageFlag.TRANSFER_SYNTAX_GUESSED: file.guessed,
        ImageFlag.PREAMBLE_EXECUTABLE: file.hidden_program,
    }
    return frozenset(flag for flag, is_so in found.items() if is_so)


def pixel_aspect(dataset: Dataset, frame: int) -> float:
    """Height of a pixel over its width; 1 where nothing usable is said.

    Spacings of zero exist in real files; they, and ratios beyond MAX_ASPECT, are ignored.
    """
    measures = functional_group(dataset, frame, "PixelMeasuresSequence")
    sources = [(measures, "PixelSpacing")] if measures is not None else []
    sources += [(dataset, kw) for kw in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")]
    for source, keyword in sources:
        spacing = numbers(source, keyword)  # vertical, horizontal
        if len(spacing) == 2 and min(spacing) > 0 and 1 / MAX_ASPECT <= spacing[0] / spacing[1] <= MAX_ASPECT:
            return spacing[0] / spacing[1]
    return 1.0


def _require_image(file: DicomFile) -> None:
    """Refuse what has no pixels to look at, and what cannot be decoded, before anything is."""
    if sop_classes.is_not_image(file.sop_class):
        raise NotAnImage("the DICOM object is of a SOP class without pixels to categorise, such as a report or a plan")
    if not codecs.is_readable(file.transfer_syntax):
        raise UnsupportedImage(f"{_named(file.transfer_syntax)} of the DICOM object is not read")
    if file.outline.broken_off:
        raise CorruptImage("the DICOM object breaks off within an element")
    if not any(keyword in file.dataset for keyword in ELEMENTS):
        if file.outline.has_pixels:
            raise CorruptImage("the DICOM object breaks off within its pixel data")
        raise NotAnImage("the DICOM object has no pixel data")
    _require_class(file)


def _require_class(file: DicomFile) -> None:
    """Refuse an object that does not say what it is, which every object has to (PS3.3 C.12.1).

    A guess from what it holds would take for an image what only has pixels. The file meta group's word for it counts
    where the data set has lost its own and still is an instance; one that is none is a fragment with a label on it.
    """
    if text(file.dataset, "RecognitionCode").startswith("ACR-NEMA") and not file.sop_class:
        raise UnsupportedImage("the object is of ACR-NEMA, which came before DICOM and is not read")
    if not file.sop_class:
        raise CorruptImage(
            "the DICOM object does not say what it is: neither it nor its file meta group has a SOP Class UID"
        )
    if "SOPClassUID" not in file.dataset and "SOPInstanceUID" not in file.dataset:
        raise CorruptImage(
            "the DICOM object does not say what it is: it has neither a SOP Class UID nor a SOP Instance UID"
        )


def _named(syntax: UID) -> str:
    return f"the transfer syntax {syntax.name}" if syntax.type == "Transfer Syntax" else "the transfer syntax"


def _frame(file: DicomFile, stored: StoredFrame, intensity: Intensity) -> Frame:
    aspect = pixel_aspect(file.dataset, stored.index)
    return replace(_seen(file, stored, intensity), pixel_aspect=aspect, index=stored.index, box=stored.box)


def _seen(file: DicomFile, frame: StoredFrame, intensity: Intensity) -> Frame:
    little_endian = bool(file.transfer_syntax.is_little_endian)
    if frame.values.ndim == 3:
        return Frame(pixels=_colour(frame, bits_stored=number(file.dataset, "BitsStored")))
    if frame.photometric == "PALETTE COLOR":
        palette = read_palette(file.dataset, signed=frame.values.dtype.kind == "i", little_endian=little_endian)
        return Frame(pixels=by_level(frame.values, palette.apply))
    return monochrome(frame.values, file.dataset, frame.index, intensity, little_endian=little_endian)


def _colour(frame: StoredFrame, bits_stored: float | None) -> FloatPlane:
    """(H, W, 3) as luminance. Y of YBR is that already, so nothing has to be converted to RGB and back."""
    values = frame.values
    white = 2.0 ** (bits_stored or 8 * values.dtype.itemsize) - 1
    if frame.photometric.startswith("YBR_PARTIAL"):  # PS3.3 C.7.6.3.1.2, retired: Y from 16 to 235
        return scale(values[..., 0], 16, 235)
    if frame.photometric in _OTHER_COLOURS:
        raise UnsupportedImage("the DICOM image has colours of a kind that is long retired; RGB and YBR are read")
    if frame.photometric.startswith("YBR"):
        return scale(values[..., 0], 0, white)
    return luminance(values, white=white)
