"""Programs that hide in the preamble of a DICOM file.

The 128 bytes before the prefix are any application's to fill (PS3.10 7.1), so a file can be an image for a viewer and a
program for an operating system (CVE-2019-11687; PS3.10 7.5 asks readers to look). It is looked at and never passed on:
what is kept of it is that it was there. A TIFF's header there is legitimate, and what the preamble was made for.
"""

from __future__ import annotations

PREAMBLE_BYTES = 128
PREFIX = b"DICM"

# What an operating system runs a file by. A preamble is empty or a TIFF's, so the two bytes of DOS and Windows are
# enough: where the rest of a program is damaged or cut off, it is still no preamble.
_PROGRAMS = (
    b"MZ",  # PE, and all that came before it
    b"\x7fELF",
    b"\xfe\xed\xfa\xce",  # Mach-O: 32 bits, 64 bits, universal, universal with 64-bit offsets; in either byte order
    b"\xce\xfa\xed\xfe",
    b"\xfe\xed\xfa\xcf",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",  # a class of Java, too
    b"\xbe\xba\xfe\xca",
    b"\xca\xfe\xba\xbf",
    b"\xbf\xba\xfe\xca",
    b"#!",  # a script
)


def has_preamble(data: bytes) -> bool:
    """Whether there is a preamble: the prefix after it says so."""
    return data[PREAMBLE_BYTES : PREAMBLE_BYTES + len(PREFIX)] == PREFIX


def hides_program(data: bytes) -> bool:
    """Whether the bytes are a DICOM file with a program in its preamble."""
    return has_preamble(data) and data.startswith(_PROGRAMS)
