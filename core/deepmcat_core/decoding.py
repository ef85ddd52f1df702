"""From the bytes of a file, or a raw plane, to frames.

    bytes ──sniff──► DICOM ──dicom──────────► Image
                     PNG, JPEG, TIFF ──plane_formats──► Image
    RawPlane ────────────────────────► Image

Content decides, never a name: a caller's names and content types are often wrong.
"""

from __future__ import annotations

import numpy as np

from deepmcat_core.dicom import decode_dicom
from deepmcat_core.dicom_file import looks_like_dicom
from deepmcat_core.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from deepmcat_core.frame import FramePolicy, Image, ImageSource, Intensity, Limits, RawPlane
from deepmcat_core.intensity import deep_frame
from deepmcat_core.plane_formats import decode_plane_format
from deepmcat_core.translation import translated

MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
    b"II+\x00": "tiff",  # BigTIFF
    b"MM\x00+": "tiff",
}


def decode(
    source: ImageSource, *, intensity: Intensity, frames: FramePolicy, limits: Limits, side: int | None = None
) -> Image:
    """The frames of an image that the policy asks for, as grey or numbers. Raises ImageError and nothing else.

    side: of the square that they are for. A codec that can may then leave out detail that would be lost in it.
    """
    with translated():
        data = source.data if isinstance(source, RawPlane) else source
        _check_bytes(data, limits)
        if isinstance(source, RawPlane):
            return _decode_raw(source, intensity, limits)
        match sniff(source):
            case "dicom":
                return decode_dicom(source, intensity=intensity, frames=frames, limits=limits, side=side)
            case "":
                raise UnsupportedImage("the bytes are not DICOM, PNG, JPEG or TIFF, which is what is read")
            case name:
                return decode_plane_format(source, name, intensity=intensity, frames=frames, limits=limits, side=side)


def sniff(data: bytes) -> str:
    """What the content is: dicom, png, jpeg, tiff, or "" for anything else.

    DICOM first: its preamble may hold a TIFF header, and then the file is both (PS3.10 7.1).
    """
    if looks_like_dicom(data):
        return "dicom"
    return next((name for magic, name in MAGIC.items() if data.startswith(magic)), "")


def _check_bytes(data: bytes, limits: Limits) -> None:
    if not data:
        raise CorruptImage("the image has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the image has {len(data)} bytes; up to {limits.max_bytes} are allowed")


def _decode_raw(plane: RawPlane, intensity: Intensity, limits: Limits) -> Image:
    limits.check_plane(plane.rows, plane.columns)
    dtype = np.dtype(plane.sample_type).newbyteorder("<")
    expected = plane.rows * plane.columns * dtype.itemsize
    if len(plane.data) != expected:
        raise CorruptImage(
            f"the raw plane has {len(plane.data)} bytes; "
            f"{plane.rows} rows of {plane.columns} {plane.sample_type} samples have {expected}"
        )
    values = np.frombuffer(plane.data, dtype=dtype).reshape(plane.rows, plane.columns)  # (H, W)
    frame = deep_frame(values, intensity, inverted=plane.inverted, wide=dtype.itemsize > 2)
    return Image(frames=(frame,), total_frames=1, format="raw", decoder="raw")
