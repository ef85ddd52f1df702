"""What decoding promises of any bytes at all, and the check that it keeps to it.

An Image of the promised shape with finite values from 0 to 1, or an ImageError and nothing else. No text of the header
in what it says, nothing on the terminal, the same answer twice, and bounds on memory and time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from deepmcat_core import codecs
from deepmcat_core.decoding import decode
from deepmcat_core.dicom import MAX_ASPECT
from deepmcat_core.errors import CorruptImage, FrameOutOfRange, ImageError, ImageTooLarge, NotAnImage, UnsupportedImage
from deepmcat_core.frame import FramePolicy, Image, ImageSource, Intensity, Limits, RawPlane
from deepmcat_core.header import read_header
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_core.preprocessing import MIN_SIZE, Preprocessing

from .objects import CANARY_NUMBER, CANARY_TEXT

# Small, so that what goes over them is seen at once.
LIMITS = Limits(
    max_bytes=4 * 2**20, max_inflated_bytes=8 * 2**20, max_decoded_bytes=4 * 2**20, max_side=4096, max_elements=20_000
)
MAX_CPU_S = 3.0  # for reading three times what the limits allow
MAX_MEMORY_BYTES = 256 * 2**20  # more than before; the pixels that the limits allow take a third of that as floats

_ERRORS = (NotAnImage, UnsupportedImage, CorruptImage, ImageTooLarge, FrameOutOfRange)
REASONS = frozenset(kind.reason for kind in _ERRORS)
_DECODERS = frozenset({*codecs.decoders(), "raw"})
_FORMATS = frozenset({"dicom", "png", "jpeg", "tiff", "raw"})
_MESSAGE = re.compile(r"[ -~]{10,300}")  # one line of printable ASCII
_M_PERTURB = -6  # mallopt of glibc: what memory is filled with when it is handed out and taken back

Answer = tuple[str, str]
"""The reason of an error and its message, or "" and a digest of the planes."""


class BrokenPromise(AssertionError):
    """Decoding has not kept a promise. The message says which, without any of the bytes."""

    @property
    def kind(self) -> str:
        """The message without its figures: the same for what is broken in the same way."""
        return re.sub(r"[0-9.]+", "N", str(self))


def check(
    source: ImageSource,
    decode_image: Callable[..., Image] = decode,
    read: Callable[[ImageSource, ReadOptions], Planes] = read_planes,
) -> str:
    """The reason of the error that an image gets, "" if it gets none. Raises BrokenPromise."""
    options = _options(source)
    before_bytes, before_s = _memory_in_use(), time.process_time()
    with _nothing_written():
        _answer(lambda: _check_image(decode_image(source, **_arguments(options)), source, options))
        answers = [
            _answered_in_memory_of(fill, lambda: _planes_digest(read(source, options), options.preprocessing.size))
            for fill in (0x55, 0xAA)
        ]
        if isinstance(source, bytes):
            _check_header(source)
    if answers[0] != answers[1]:
        raise BrokenPromise(f"the same bytes got two answers: {_kind(answers[0])}, then {_kind(answers[1])}")
    if (spent_s := time.process_time() - before_s) > MAX_CPU_S:
        raise BrokenPromise(f"more than {MAX_CPU_S:g} s: {spent_s:.1f}")
    if before_bytes and (used := _peak_memory() - before_bytes) > MAX_MEMORY_BYTES:
        raise BrokenPromise(f"more memory than {MAX_MEMORY_BYTES} bytes: {used}")
    return answers[0][0]


def _options(source: ImageSource) -> ReadOptions:
    """As a checksum has it, so that much is tried and the same bytes get the same: windows or percentiles, which size.

    The least size has frames of 64 pixels and more decoded at a part of theirs.
    """
    chosen = zlib.crc32(source.data if isinstance(source, RawPlane) else source)
    preprocessing = Preprocessing(
        size=128 if chosen & 1 else MIN_SIZE, intensity=Intensity(mode="window" if chosen & 2 else "percentile")
    )
    return ReadOptions(preprocessing=preprocessing, frames=FramePolicy(count=3), limits=LIMITS)


def _arguments(options: ReadOptions) -> dict[str, object]:
    return {"intensity": options.preprocessing.intensity, "frames": options.frames, "limits": options.limits}


def _answer(read: Callable[[], str]) -> Answer:
    """What reading comes to. Raises BrokenPromise."""
    try:
        return "", read()
    except ImageError as error:
        _check_error(error)
        return error.reason, str(error)
    except (BrokenPromise, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise BrokenPromise(f"{type(error).__name__} instead of an ImageError") from error


def _answered_in_memory_of(fill: int, read: Callable[[], str]) -> Answer:
    """The answer while fresh memory holds a certain byte: pixels that nobody has written would show it."""
    _fill_memory(fill)
    try:
        return _answer(read)
    finally:
        _fill_memory(0)


def _fill_memory(fill: int) -> None:
    with suppress(AttributeError, OSError):  # there is no mallopt but glibc's
        ctypes.CDLL(None).mallopt(_M_PERTURB, fill)


def _check_image(image: Image, source: ImageSource, options: ReadOptions) -> str:
    if image.format not in _FORMATS or image.decoder not in _DECODERS:
        raise BrokenPromise("a format or decoder that there is not")
    if tuple(frame.index for frame in image.frames) != options.frames.indices(image.total_frames):
        raise BrokenPromise("other frames than the policy asks for")
    for frame in image.frames:
        pixels = frame.pixels
        if pixels.ndim != 2 or not all(1 <= n <= LIMITS.max_side for n in pixels.shape):
            raise BrokenPromise("a frame that is no plane within the limits")
        if pixels.dtype != np.float32 and not (pixels.dtype == np.uint8 and frame.deep):
            raise BrokenPromise("a plane that is neither of float32 nor of bytes to be stretched")
        if isinstance(source, RawPlane) and pixels.shape != (source.rows, source.columns):
            raise BrokenPromise("a raw plane of another shape")
        if not np.isfinite(pixels).all():
            raise BrokenPromise("a pixel that is no number")
        if not frame.deep and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise BrokenPromise("grey that is not from 0 to 1")
        if any(other is not None and other.shape != pixels.shape for other in (frame.known, frame.painted)):
            raise BrokenPromise("a mask of another shape than its frame")
        if not 1 / MAX_ASPECT <= frame.pixel_aspect <= MAX_ASPECT:
            raise BrokenPromise("a pixel aspect that cannot be")
    return ""


def _check_error(error: ImageError) -> None:
    said = f"{error!s} {error!r}"
    if CANARY_TEXT in said or CANARY_NUMBER in said:
        raise BrokenPromise("an error quotes the header")
    if error.reason not in REASONS:
        raise BrokenPromise(f"{type(error).__name__} has no reason of its own")
    if not _MESSAGE.fullmatch(str(error)):
        raise BrokenPromise("an error says something that is not one sentence in ASCII")


def _check_header(data: bytes) -> None:
    try:
        read_header(data, LIMITS)
    except Exception as error:
        raise BrokenPromise(f"{type(error).__name__} from read_header, which never raises") from error


def _planes_digest(planes: Planes, size: int) -> str:
    if planes.planes.dtype != np.uint8 or planes.planes.shape != (len(planes.frame_indices), size, size):
        raise BrokenPromise("planes of another shape or type")
    said = f"{planes.frame_indices} {planes.total_frames} {planes.format} {planes.decoder} {sorted(planes.flags)}"
    return hashlib.sha256(planes.planes.tobytes() + said.encode()).hexdigest()


def _kind(answer: Answer) -> str:
    return answer[0] or "an image"


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Nothing may be warned of, or written to stdout or stderr, by C code neither. Raises BrokenPromise."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            for number, was in enumerate(saved, 1):
                os.dup2(was, number)
                os.close(was)
        if warned:
            raise BrokenPromise(f"{warned[0].category.__name__} gets out")
        if file.seek(0, os.SEEK_END):
            raise BrokenPromise("something is written to the terminal")


def _memory_in_use() -> int:
    """Resident bytes, from where the peak is counted anew; 0 where the system does not say."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return 0


def _peak_memory() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
