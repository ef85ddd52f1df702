"""From the bytes of a DICOM file to a parsed data set, within limits.

    bytes ─► preamble, file meta group ─► (inflate) ─► walk: depth, elements ─► what is read of the data set

A bare data set, as C-STORE delivers it, has neither preamble nor file meta group; its encoding is guessed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from deepmcat_core.dicom_dataset import WITH_PIXELS, WITHOUT_PIXELS, SparseDataset
from deepmcat_core.dicom_structure import Encoding, Outline, encoding_at, has_vr, outline
from deepmcat_core.errors import ImageTooLarge, UnsupportedImage
from deepmcat_core.frame import Limits
from deepmcat_core.preamble import PREAMBLE_BYTES, PREFIX, has_preamble, hides_program

_META_GROUP = 0x0002
_COMMAND_GROUP_LENGTH = b"\0\0\0\0\4\0\0\0"  # tag and length of (0000,0000), which the group has to begin with
_MEDIA_STORAGE_SOP_CLASS, _TRANSFER_SYNTAX = 0x00020002, 0x00020010

# Groups that a data set may start with: file meta without a preamble, or what Part 3 puts first in an image.
_FIRST_GROUPS = frozenset({0x0002, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028})

# Their data sets are deflated too, and they hold a URL where pixel data would be.
_REFERENCED_DEFLATED = frozenset({"1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})


# Below this, a blank image may well be a thousandth of its size when deflated.
_INFLATED_BYTES_UNCHECKED = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomFile:
    """A parsed DICOM object. sop_class: of the data set, else of the file meta group, else "".

    transfer_syntax: as stated, but Explicit VR Little Endian where it was inflated. guessed: it was not stated.
    hidden_program: there is one in the preamble.
    """

    dataset: SparseDataset
    transfer_syntax: UID
    sop_class: str
    guessed: bool
    hidden_program: bool
    outline: Outline


def looks_like_dicom(data: bytes) -> bool:
    """Whether the bytes are DICOM: by preamble and prefix, or by a first element that is plausible."""
    return has_preamble(data) or _starts_with_element(data)


def read_dicom_file(data: bytes, limits: Limits, *, with_pixels: bool = True) -> DicomFile:
    """Parse a DICOM file or a bare data set. Raises ImageError, and may raise what pydicom raises.

    with_pixels: False leaves out pixel data.
    """
    start = PREAMBLE_BYTES + len(PREFIX) if has_preamble(data) else 0
    hidden_program = hides_program(data)
    meta, start = _read_meta(data, start, limits)
    start = _after_command_group(data, start)
    stated = meta.get(_TRANSFER_SYNTAX, "")
    if stated in _REFERENCED_DEFLATED:
        raise UnsupportedImage(
            "the image's pixels are not in the object but behind a JPIP reference, which is not read"
        )
    if stated == DeflatedExplicitVRLittleEndian:
        data, start, stated = inflate(data[start:], limits), 0, ExplicitVRLittleEndian
    encoding = _encoding(data, start, stated)
    seen = outline(data, start, encoding, limits, WITH_PIXELS if with_pixels else WITHOUT_PIXELS)
    dataset = SparseDataset(data, seen, encoding, limits)
    syntax = UID(stated) if stated else _native_syntax(encoding)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return DicomFile(
        dataset=dataset,
        transfer_syntax=syntax,
        sop_class=str(dataset.get("SOPClassUID") or meta.get(_MEDIA_STORAGE_SOP_CLASS, "")),
        guessed=not stated,
        hidden_program=hidden_program,
        outline=seen,
    )


def inflate(deflated: bytes, limits: Limits) -> bytes:
    """Undo Deflated Explicit VR Little Endian (PS3.5 A.5) within limits: pydicom inflates without bound."""
    allowed = min(limits.max_inflated_bytes, max(_INFLATED_BYTES_UNCHECKED, limits.max_inflation * len(deflated)))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(deflated, allowed)
    if stream.unconsumed_tail:
        raise ImageTooLarge(f"the DICOM object of {len(deflated)} bytes inflates to more than the {allowed} allowed")
    return inflated


def _read_meta(data: bytes, start: int, limits: Limits) -> tuple[dict[int, str], int]:
    """The UIDs of the file meta group by tag, and the offset after it. The group is flat and never deflated."""
    uids: dict[int, str] = {}
    offset, elements = start, 0
    while data[offset : offset + 2] == b"\x02\x00" and offset + 8 <= len(data):
        elements += 1
        limits.check_elements(elements)
        number = struct.unpack_from("<H", data, offset + 2)[0]
        if not has_vr(data, offset):
            value, length = offset + 8, struct.unpack_from("<L", data, offset + 4)[0]
        elif data[offset + 4 : offset + 6] in (b"OB", b"UN", b"UT", b"OW"):
            value, length = offset + 12, int.from_bytes(data[offset + 8 : offset + 12], "little")
        else:
            value, length = offset + 8, struct.unpack_from("<H", data, offset + 6)[0]
        tag = _META_GROUP << 16 | number
        if tag in (_MEDIA_STORAGE_SOP_CLASS, _TRANSFER_SYNTAX):
            uids[tag] = data[value : value + min(length, 64)].rstrip(b"\0 ").decode("ascii", "replace")
        offset = value + length
    return uids, offset


def _after_command_group(data: bytes, start: int) -> int:
    """The offset after the command group that a network dump has before its data set; it is implicit (PS3.7 6.3.1)."""
    if not data.startswith(_COMMAND_GROUP_LENGTH, start) or len(data) < start + 12:
        return start
    return min(len(data), start + 12 + int.from_bytes(data[start + 8 : start + 12], "little"))


def _encoding(data: bytes, start: int, stated: str) -> Encoding:
    """How the data set is written. What its first element shows wins over what the file meta group says of the VR."""
    if stated:
        big = stated == ExplicitVRBigEndian
    else:
        big = int.from_bytes(data[start : start + 2], "little") not in _FIRST_GROUPS and has_vr(data, start)
    return encoding_at(data, start, little_endian=not big)


def _native_syntax(encoding: Encoding) -> UID:
    if encoding.implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if encoding.little_endian else ExplicitVRBigEndian


def _starts_with_element(data: bytes) -> bool:
    start = _after_command_group(data, 0)
    if len(data) < start + 12:
        return False
    little = int.from_bytes(data[start : start + 2], "little") in _FIRST_GROUPS
    big = int.from_bytes(data[start : start + 2], "big") in _FIRST_GROUPS
    if has_vr(data, start):
        return little or big
    # Implicit VR: no letters to recognise it by, so the length has to make sense as well.
    return little and int.from_bytes(data[start + 4 : start + 8], "little") <= len(data) - start - 8
