"""What a decoding worker makes of a file, and what that cost it."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import HTJ2K, JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from deepmcat_core.dicom_file import read_dicom_file
from deepmcat_core.errors import ImageError, NotAnImage
from deepmcat_core.frame import Limits
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_core.translation import translated

COLUMNS = ("status", "reason", "message", "syntax", "decoder", "frames", "used", "flags", "digest", "thumbnail")

THUMBNAIL = 8  # pixels a side

# Decoders of these may differ by a grey level or three, and a digest of all pixels would say so.
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K})

# What runs when pixels are decoded: pydicom's runner, a codec, or a function of ours that calls one.
_DECODING = re.compile(r"(imagecodecs|openjpeg|jpeg_ls|PIL)\b|pydicom\.pixels\.decoders|deepmcat_core\.codecs\.decode_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row of the golden table without its file. cpu_s: of the process. peak_bytes: the most memory it had by then."""

    row: dict[str, str]
    cpu_s: float
    peak_bytes: int


def answer(data: bytes) -> Answer:
    """Read an image as everything else does. Raises what is no ImageError, which nothing should be."""
    _forget_peak()
    start = time.process_time()
    try:
        planes: Planes | ImageError = read_planes(data, ReadOptions())
    except ImageError as error:
        planes = error
    cpu_s = time.process_time() - start
    peak_bytes = _peak_bytes()
    row = refused(planes) if isinstance(planes, ImageError) else _image(planes, data)
    return Answer(row=row, cpu_s=cpu_s, peak_bytes=peak_bytes)


def refused(error: ImageError) -> dict[str, str]:
    """The row of an image that is answered with an error. The sentence is ours: nothing in it is text of a header."""
    status = "not an image" if isinstance(error, NotAnImage) else "refused"
    return dict.fromkeys(COLUMNS, "") | {"status": status, "reason": error.reason, "message": str(error)}


def digest(planes: npt.NDArray[np.uint8]) -> str:
    """Of shape and pixels."""
    return hashlib.sha256(repr(planes.shape).encode() + planes.tobytes()).hexdigest()[:16]


def thumbnails(planes: npt.NDArray[np.uint8]) -> str:
    """The planes as squares of THUMBNAIL pixels, each the mean of a block; in hexadecimal, a word for each."""
    frames, side, _ = planes.shape
    block = side // THUMBNAIL
    means = planes.reshape(frames, THUMBNAIL, block, THUMBNAIL, block).mean(axis=(2, 4))
    return " ".join(np.rint(mean).astype(np.uint8).tobytes().hex() for mean in means)


def without_versions(decoders: str) -> str:
    """Decoders as in "name version, name version at 1/8" by their names, and at which part of the size they decode."""
    return ", ".join(re.sub(r"^(\S+) \S+", r"\1", decoder) for decoder in decoders.split(", "))


def decodes(data: bytes) -> bool:
    """Whether anything that decodes pixels is called before an image is answered."""
    called = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.add(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}")
        elif event == "c_call":
            called.add(f"{argument.__module__}.{argument.__name__}")

    sys.setprofile(note)
    try:
        with suppress(ImageError):
            read_planes(data, ReadOptions())
    finally:
        sys.setprofile(None)
    return any(_DECODING.match(name) for name in called)


def _image(planes: Planes, data: bytes) -> dict[str, str]:
    syntax = _transfer_syntax(data) if planes.format == "dicom" else None
    is_lossy = planes.format == "jpeg" if syntax is None else syntax in LOSSY
    return {
        "status": "image",
        "reason": "",
        "message": "",
        "syntax": planes.format if syntax is None else syntax.keyword,
        "decoder": without_versions(planes.decoder),
        "frames": str(planes.total_frames),
        "used": " ".join(map(str, planes.frame_indices)),
        "flags": " ".join(sorted(planes.flags)),
        "digest": "" if is_lossy else digest(planes.planes),
        "thumbnail": thumbnails(planes.planes),
    }


def _transfer_syntax(data: bytes) -> UID:
    with translated():
        return read_dicom_file(data, Limits(), with_pixels=False).transfer_syntax


def _forget_peak() -> None:
    """Have the kernel forget the most memory that this process had; where it may not, the peak is that of all files."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """The most memory this process had. Not getrusage's: that one starts with what the parent had at the fork."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
