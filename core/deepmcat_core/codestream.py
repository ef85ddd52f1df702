"""What a compressed frame says of its own size, read from its first markers, so that no codec is let loose on a lie."""

from __future__ import annotations

from dataclasses import dataclass

_J2K_START = b"\xff\x4f\xff\x51"  # SOC, SIZ (ISO/IEC 15444-1 A.4.1, A.5.1)
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and JPEG-LS's SOF55
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


@dataclass(frozen=True, slots=True)
class CodestreamSize:
    """Rows, columns and components of a frame."""

    rows: int
    columns: int
    components: int


def codestream_size(frame: bytes) -> CodestreamSize | None:
    """The size in the markers of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame; None where it cannot be told."""
    start = frame.find(_J2K_START, 0, 4096)  # a JP2 file around the codestream is wrong in DICOM, and occurs
    if start >= 0:
        return _from_siz(frame[start + 4 : start + 42])
    return _from_sof(frame) if frame.startswith(_JPEG_START) else None


def _from_siz(siz: bytes) -> CodestreamSize | None:
    if len(siz) < 38:
        return None
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4], "big") for at in (4, 8, 12, 16))
    return CodestreamSize(bottom - top, right - left, int.from_bytes(siz[36:38], "big"))


def _from_sof(frame: bytes) -> CodestreamSize | None:
    offset = 2
    while offset + 4 <= len(frame) and frame[offset] == 0xFF:
        marker = frame[offset + 1]
        if marker == 0xFF:  # fill
            offset += 1
        elif marker in _ALONE:
            offset += 2
        elif marker in _FRAME_MARKERS:
            sof = frame[offset + 5 : offset + 10]
            rows, columns = int.from_bytes(sof[0:2], "big"), int.from_bytes(sof[2:4], "big")
            # Rows may be 0, and follow in a DNL marker.
            return CodestreamSize(rows, columns, sof[4]) if len(sof) == 5 and rows else None
        else:
            offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
    return None
