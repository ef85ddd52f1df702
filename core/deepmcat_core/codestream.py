"""What a compressed frame says of itself, read from its first markers, so that no codec is let loose on a lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

_J2K_START = b"\xff\x4f\xff\x51"  # SOC, SIZ (ISO/IEC 15444-1 A.4.1, A.5.1)
_J2K_CODING, _J2K_TILE = 0xFF52, 0xFF90  # COD (A.6.1) is before the first SOT (A.4.2)
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"  # the signature box (I.5.1)
_CODESTREAM_BOX = b"jp2c"  # (I.5.4)
_PALETTE_BOX = b"pclr"  # of a JP2 file (I.5.3.4)
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and JPEG-LS's SOF55
_COSINE_MARKERS = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: blocks of 8 by 8
_SCAN = 0xDA  # SOS: what a frame says of itself is before it
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # markers without a length
_JFIF, _ADOBE = (0xE0, b"JFIF"), (0xEE, b"Adobe")
_RGB_IDS = (b"RGB", b"rgb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """bits: of a sample. halvings: how often a decoder can halve the sides without decoding all of it.

    is_wavelet: JPEG 2000 or HTJ2K. start: where it begins, after the boxes of a JP2 file around it. is_rgb: what an
    encoder's mark says of three components, RGB or YCbCr; None where it says nothing.
    """

    rows: int
    columns: int
    components: int
    bits: int = 0
    signed: bool = False
    halvings: int = 0
    is_wavelet: bool = False
    start: int = 0
    is_rgb: bool | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Rows, columns and components."""
        return self.rows, self.columns, self.components


def read_codestream(frame: bytes) -> Codestream | None:
    """What the markers of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame say; None where it cannot be told."""
    if frame.startswith(_JPEG_START):
        return _from_sof(frame)
    start = _boxed(frame) if frame.startswith(_JP2_START) else 0  # such a file is wrong in DICOM, and occurs
    return _from_siz(frame, start) if frame.startswith(_J2K_START, start) else None


def _boxed(frame: bytes) -> int:
    """Where the codestream of a JP2 file begins (ISO/IEC 15444-1 I.4); the file's end where it has none."""
    offset = 0
    while offset + 8 <= len(frame):
        length, kind = int.from_bytes(frame[offset : offset + 4], "big"), frame[offset + 4 : offset + 8]
        header = 16 if length == 1 else 8
        if kind == _CODESTREAM_BOX:
            return offset + header
        if length == 1:
            length = int.from_bytes(frame[offset + 8 : offset + 16], "big")
        if length < header:  # 0: to the end of the file
            break
        offset += length
    return len(frame)


def _from_siz(frame: bytes, start: int) -> Codestream | None:
    siz = frame[start + 4 : start + 45]
    if len(siz) < 41:
        return None
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4], "big") for at in (4, 8, 12, 16))
    components = int.from_bytes(siz[36:38], "big")
    found = Codestream(
        rows=bottom - top,
        columns=right - left,
        components=components,
        bits=(siz[38] & 0x7F) + 1,
        signed=bool(siz[38] & 0x80),
        is_wavelet=True,
        start=start,
    )
    # Its levels can be used where pixels are counted from 0 and all components are alike (A.5.1), and no indices.
    alike = frame[start + 42 : start + 42 + 3 * components] == bytes([siz[38], 1, 1]) * components
    looked_up = frame.find(_PALETTE_BOX, 0, start) >= 0
    plain = left == top == 0 and alike and not looked_up
    return replace(found, halvings=_j2k_levels(frame, start + 2)) if plain else found


def _j2k_levels(frame: bytes, offset: int) -> int:
    """Decomposition levels, which the COD segment of the main header states (A.6.1)."""
    while offset + 4 <= len(frame):
        marker, length = (int.from_bytes(frame[at : at + 2], "big") for at in (offset, offset + 2))
        if marker == _J2K_CODING:
            return frame[offset + 9] if offset + 9 < len(frame) else 0
        if marker == _J2K_TILE or length < 2:
            break
        offset += 2 + length
    return 0


def _from_sof(frame: bytes) -> Codestream | None:
    offset, is_rgb, is_jfif = 2, None, False
    while offset + 4 <= len(frame):
        if frame[offset] != 0xFF:  # decoders pass over what is no marker, and go on
            offset = frame.find(b"\xff", offset)
            if offset < 0:
                break
            continue
        marker = frame[offset + 1]
        if marker == 0xFF:  # fill
            offset += 1
            continue
        if marker == _SCAN:
            break
        if marker in _ALONE:
            offset += 2
            continue
        if marker in _FRAME_MARKERS:
            return _from_frame_header(frame, offset, is_rgb, is_jfif=is_jfif)
        end = offset + 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
        segment = frame[offset + 4 : end]
        if (marker, segment[:5]) == _ADOBE and len(segment) >= 12:  # its transform: 0 none, 1 YCbCr
            is_rgb = not segment[11]
        is_jfif |= (marker, segment[:4]) == _JFIF
        offset = end
    return None


def _from_frame_header(frame: bytes, offset: int, is_rgb: bool | None, *, is_jfif: bool) -> Codestream | None:
    """From a JPEG's SOF segment (ISO/IEC 10918-1 B.2.2). is_rgb: what an Adobe segment before it says."""
    marker, sof = frame[offset + 1], frame[offset + 4 : offset + 10]
    if len(sof) < 6:
        return None
    rows, columns = int.from_bytes(sof[1:3], "big"), int.from_bytes(sof[3:5], "big")
    if not rows:  # it follows in a DNL marker
        return None
    if is_rgb is None:
        by_id = frame[offset + 10 : offset + 19 : 3] in _RGB_IDS
        is_rgb = True if by_id else False if is_jfif else None
    return Codestream(
        rows=rows,
        columns=columns,
        components=sof[5],
        bits=sof[0],
        halvings=3 if marker in _COSINE_MARKERS and sof[0] == 8 else 0,  # libjpeg's 1/2, 1/4 and 1/8
        is_rgb=is_rgb,
    )
