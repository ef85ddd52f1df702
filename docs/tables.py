"""Writes the tables of docs/conformance.md, between the marks that name them, from the code that they are about.

python docs/tables.py            write them
python docs/tables.py --check    exit 1 where what is committed differs from what would be written
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import imagecodecs
import numpy as np
from pydicom import dcmwrite
from pydicom import uid as uids
from pydicom.charset import python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID_dictionary

from deepmcat_core import (
    codecs,
    dicom,
    dicom_file,
    dicom_grey,
    dicom_values,
    errors,
    header,
    lookup_table,
    pixel_data,
    sop_classes,
)
from deepmcat_core.errors import ImageError
from deepmcat_core.frame import ImageFlag, Limits
from deepmcat_core.planes import ReadOptions, read_planes

DOCUMENT = Path(__file__).parent / "conformance.md"
CONTRACT = Path(__file__).parents[1] / "protos/deepmcat/v1/categorization.proto"

_BLOCK = re.compile(r"(?<=<!-- table: )(?P<name>[a-z-]+)(?P<is> -->\n).*?(?P<end><!-- end -->)", re.DOTALL)

# What attributes are read for.
PIXELS, FLAGS, CLASS = "pixels", "flags", "what the object is"
CODED, TEXT, IDENTIFIERS = "coded terms", "descriptions", "identifiers"

# Attributes that are read and not named: by pydicom, which turns bytes into values for us, or by their tag.
UNNAMED = (
    (PIXELS, "PixelRepresentation"),
    (PIXELS, "PlanarConfiguration"),
    (TEXT, "SpecificCharacterSet"),
    (CLASS, "MediaStorageSOPClassUID"),
)
NO_ATTRIBUTES = frozenset({"Plane"})  # what we call something else is the keyword of an attribute, too

# What makes a frame of some transfer syntaxes, to see how it is decoded; of the others all is decoded.
_ENCODERS: dict[str, Callable[..., bytes]] = {
    **dict.fromkeys((uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit), imagecodecs.jpeg8_encode),
    **dict.fromkeys(
        (uids.JPEG2000, uids.JPEG2000Lossless), functools.partial(imagecodecs.jpeg2k_encode, codecformat="j2k")
    ),
    **dict.fromkeys((uids.HTJ2K, uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL), imagecodecs.htj2k_encode),
    **dict.fromkeys((uids.JPEGLSLossless, uids.JPEGLSNearLossless), imagecodecs.jpegls_encode),
    **dict.fromkeys((uids.JPEGLossless, uids.JPEGLosslessSV1), imagecodecs.ljpeg_encode),
}

Rows = Iterable[Sequence[str]]


def written(document: str) -> str:
    """A document with its tables as the code has them now."""
    return _BLOCK.sub(
        lambda block: f"{block['name']}{block['is']}\n{TABLES[block['name']]()}\n{block['end']}", document
    )


def main(arguments: list[str]) -> int:
    """Write, or with --check compare."""
    before = DOCUMENT.read_text()
    after = written(before)
    if arguments != ["--check"]:
        DOCUMENT.write_text(after)
        return 0
    if before != after:
        sys.stderr.write(f"the tables of {DOCUMENT.name} are stale: run `make docs`\n")
        return 1
    return 0


def sop_class_table() -> str:
    """Storage classes that are images, computed or not, with the flags that each brings."""
    return _table(("SOP class", "UID", "flags"), _images())


def no_image_table() -> str:
    """Storage classes that are answered NOT_AN_IMAGE."""
    return _table(("SOP class", "UID"), (_named(uid) for uid in _classes(sop_classes.NOT_IMAGES)))


def syntax_table() -> str:
    """Every transfer syntax that is read, with what decodes it."""
    return _table(("transfer syntax", "UID", "decoder", "at a part of the size"), map(_syntax, _syntaxes(read=True)))


def no_syntax_table() -> str:
    """Every other one of the standard."""
    return _table(("transfer syntax", "UID"), map(_named, _syntaxes(read=False)))


def limit_table() -> str:
    """Every limit with its default, in the words of the code."""
    source = inspect.getsource(Limits)
    comments = dict(re.findall(r"^    (\w+): int = [^#\n]*(?:# (.*))?$", source, re.MULTILINE))
    rows = ((f"`{field.name}`", _size(field.name, field.default), comments[field.name]) for field in fields(Limits))
    return _table(("limit", "default", "of"), rows)


def reason_table() -> str:
    """Every reason for which an image is refused."""
    kinds = (kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, ImageError))
    rows = ((f"`{kind.reason}`", _sentence(kind.__doc__ or "")) for kind in kinds if kind is not ImageError)
    return _table(("reason", "answer to"), rows)


def flag_table() -> str:
    """Every flag, as the wire contract explains it."""
    comments = re.findall(r"((?:  // [^\n]+\n)+)  IMAGE_FLAG_(\w+) =", CONTRACT.read_text())
    meanings = {name: " ".join(re.findall(r"// (.*)", comment)) for comment, name in comments}
    rows = ((f"`{flag}`", meanings[flag]) for flag in ImageFlag)
    return _table(("flag", "meaning"), rows)


def attribute_table() -> str:
    """Every attribute that the code names, by what it is read for; private and all other ones are never read."""
    read: dict[str, set[str]] = {}
    for purpose, keyword in (*_named_keywords(), *UNNAMED):
        read.setdefault(keyword, set()).add(purpose)
    tags = {keyword: Tag(tag_for_keyword(keyword) or 0) for keyword in read}
    order = (CLASS, PIXELS, FLAGS, CODED, TEXT, IDENTIFIERS)
    rows = (
        (
            keyword,
            f"({tags[keyword].group:04X},{tags[keyword].elem:04X})",
            ", ".join(p for p in order if p in read[keyword]),
        )
        for keyword in sorted(read, key=lambda keyword: tags[keyword])
    )
    return _table(("attribute", "tag", "read for"), rows)


def character_set_table() -> str:
    """Every defined term of Specific Character Set that is decoded."""
    return _table(("defined terms",), [(", ".join(f"`{term}`" for term in sorted(python_encoding) if term),)])


TABLES: dict[str, Callable[[], str]] = {
    "images": sop_class_table,
    "no-images": no_image_table,
    "transfer-syntaxes": syntax_table,
    "other-transfer-syntaxes": no_syntax_table,
    "limits": limit_table,
    "reasons": reason_table,
    "flags": flag_table,
    "attributes": attribute_table,
    "character-sets": character_set_table,
}


def _images() -> Iterator[tuple[str, str, str]]:
    for uid in _classes(sop_classes.IMAGES | sop_classes.COMPUTED_IMAGES):
        flags = {
            ImageFlag.DERIVED: sop_classes.is_computed(uid),
            ImageFlag.SECONDARY_CAPTURE: sop_classes.is_secondary_capture(uid),
            ImageFlag.BURNED_IN_TEXT_POSSIBLE: sop_classes.often_has_text(uid),
        }
        yield *_named(uid), " ".join(f"`{flag}`" for flag, has in flags.items() if has)


def _classes(keywords: frozenset[str]) -> list[str]:
    return [uid for uid, entry in UID_dictionary.items() if entry[4] in keywords]


def _named(uid: str) -> tuple[str, str]:
    name, _, _, retired, _ = UID_dictionary[uid]
    return name + (" (retired)" if retired and "Retired" not in name else ""), uid


def _syntaxes(*, read: bool) -> Iterator[str]:
    for uid, (_, kind, _, _, _) in UID_dictionary.items():
        if kind == "Transfer Syntax":
            is_read = uid == uids.DeflatedExplicitVRLittleEndian or codecs.is_readable(uid)
            if is_read == read:
                yield uid


def _syntax(uid: str) -> tuple[str, str, str, str]:
    if uid == uids.DeflatedExplicitVRLittleEndian:
        return *_named(uid), "inflated within limits, then pydicom", ""
    return *_named(uid), codecs.decoder(uid).partition(" ")[0], "yes" if _shrinks(uid) else ""


def _shrinks(syntax: str) -> bool:
    """Whether a large image in a transfer syntax is decoded at a part of its size: it is tried."""
    encode = _ENCODERS.get(syntax)
    if encode is None:
        return False
    pixels = np.add.outer(np.arange(1024), np.arange(1024)).astype(np.uint8)
    planes = read_planes(_dicom(pixels.shape, encode(pixels), syntax), ReadOptions())
    return " at 1/" in planes.decoder


def _dicom(shape: tuple[int, ...], frame: bytes, syntax: str) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uids.CTImageStorage, "1.2.826.0.1.3680043.8.498.1"
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.add_new("PixelData", "OB", encapsulate([frame]))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uids.UID(syntax)
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _size(name: str, value: int) -> str:
    return f"{value // 2**20} MiB" if name.endswith("_bytes") else f"{value:,}"


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")[0].lower() + text.strip().rstrip(".")[1:]


def _named_keywords() -> Iterator[tuple[str, str]]:
    """What an attribute is read for, and its keyword, for each mention in the modules that read data sets."""
    for module, purpose in _READERS:
        for node in ast.parse(inspect.getsource(module)).body:
            name = getattr(node, "name", "")
            for keyword in _keywords(node):
                yield purpose(name, keyword), keyword


def _keywords(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        text = inner.value if isinstance(inner, ast.Constant) else getattr(inner, "attr", None)
        if isinstance(text, str) and text[:1].isupper() and text not in NO_ATTRIBUTES and tag_for_keyword(text):
            yield text


def _in_dicom(function: str, keyword: str) -> str:
    return {"image_flags": FLAGS, "_require_class": CLASS}.get(function, PIXELS)


def _in_header(function: str, keyword: str) -> str:
    if keyword in header.DESCRIPTIONS:
        return TEXT
    return IDENTIFIERS if keyword in ("PatientID", "SeriesInstanceUID", "SOPInstanceUID") else CODED


_READERS: tuple[tuple[ModuleType, Callable[[str, str], str]], ...] = (
    (dicom_file, lambda function, keyword: CLASS),
    (dicom, _in_dicom),
    (dicom_values, lambda function, keyword: PIXELS),
    (pixel_data, lambda function, keyword: PIXELS),
    (dicom_grey, lambda function, keyword: PIXELS),
    (lookup_table, lambda function, keyword: PIXELS),
    (header, _in_header),
)


def _table(headings: Sequence[str], rows: Rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
