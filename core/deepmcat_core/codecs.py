"""Which codec decodes which transfer syntax, and our own pydicom plugins.

One codec per syntax, pinned: pydicom's own order depends on what else is installed, and lossy decoders differ by a grey
level or three, so an image would get other pixels on another machine. JPEG is decoded by imagecodecs (BSD;
libjpeg-turbo inside): 8 and 12 bits lossy, 2 to 16 bits lossless, where pydicom's usual choices read 8 bits only or
are under the GPL. RLE too: pylibjpeg-rle panics on damaged frames, and a panic of Rust is no Exception. HTJ2K not:
imagecodecs (OpenJPH) is twice as fast as OpenJPEG, but lossy samples beyond the range come out at its other end.

A frame of which only a small picture is wanted may be decoded by `shrinking` instead.
"""

from __future__ import annotations

import struct
from importlib.metadata import version
from typing import cast

import imagecodecs
import numpy as np
from openjpeg.utils import decode_pixel_data as decode_openjpeg
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from deepmcat_core import shrinking
from deepmcat_core.codestream import Codestream, read_codestream

NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})

JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
_JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)

# Transfer syntax → the package that decodes it, which is also the name of the pydicom plugin.
_PACKAGES: dict[str, str] = {
    **dict.fromkeys((*JPEG, RLELossless), "imagecodecs"),
    **dict.fromkeys(_JPEG_2000, "pylibjpeg-openjpeg"),
    **dict.fromkeys(_JPEG_LS, "pyjpegls"),
}

# Transfer syntax → the function of this module that calls the package. pyjpegls comes with a plugin in pydicom; that of
# OpenJPEG wants a framework that adds nothing here.
_FUNCTIONS: dict[str, str] = {
    **dict.fromkeys(JPEG, "decode_jpeg"),
    **dict.fromkeys(_JPEG_2000, "decode_jpeg_2000"),
    RLELossless: "decode_rle",
}

# What pydicom asks of a module of plugins.
DECODER_DEPENDENCIES = {syntax: (package,) for syntax, package in _PACKAGES.items()}

_VERSIONS = {package: version(package) for package in ("pydicom", *_PACKAGES.values())}


def is_readable(syntax: str) -> bool:
    """Whether pixels in this transfer syntax can be decoded."""
    return syntax in NATIVE or syntax in _PACKAGES


def plugin(syntax: str) -> str:
    """The name of the pydicom plugin for a syntax; "" for the native ones."""
    return _PACKAGES.get(syntax, "")


def decoder(syntax: str) -> str:
    """What decodes a syntax, as "name version"."""
    package = _PACKAGES.get(syntax, "pydicom")
    return f"{package} {_VERSIONS[package]}"


def decoders() -> tuple[str, ...]:
    """Every decoder of DICOM pixels in use, as "name version", sorted."""
    return tuple(sorted([*(f"{package} {found}" for package, found in _VERSIONS.items()), shrinking.decoder(0)]))


def is_available(uid: UID) -> bool:
    """Whether the plugin decodes a syntax; asked by pydicom."""
    return uid in DECODER_DEPENDENCIES


def ended(frame: bytes, syntax: str) -> bytes:
    """A compressed frame that certainly ends with a marker, where its decoder needs one.

    In JPEG-LS that breaks off without one, CharLS counts to 2**31 before it gives up. One more changes nothing.
    """
    return frame + b"\xff\xd9" if syntax in _JPEG_LS else frame


def decode_jpeg(source: bytes, runner: DecodeRunner) -> bytes:
    """One JPEG frame as its samples, colours not converted: the plugin's function, called by pydicom.

    Sets what the codestream knows better than the header: the container of a sample, the order of samples, and whether
    an encoder's mark says that colours are RGB or YCbCr.
    """
    # With in and out the same, libjpeg converts nothing; which name is given does not matter then.
    same = "YCBCR" if runner.samples_per_pixel > 1 else None
    samples = imagecodecs.jpeg8_decode(source, colorspace=same, outcolorspace=same)  # (H, W) or (H, W, 3)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    _set_photometric(source, runner)
    return samples.tobytes()


def photometric(syntax: str, stated: str, codestream: Codestream | None) -> str:
    """What decoded samples mean: as the header says, but for colours of which syntax or codestream know better."""
    if syntax in _JPEG_2000 and stated in ("YBR_ICT", "YBR_RCT"):
        return "RGB"  # a decoder undoes the codestream's own transform
    if syntax in JPEG and codestream and codestream.components == 3 and codestream.is_rgb is not None:
        return "RGB" if codestream.is_rgb else "YBR_FULL"
    return stated


def decode_jpeg_2000(source: bytes, runner: DecodeRunner) -> bytearray:
    """One JPEG 2000 or HTJ2K frame as its samples: the plugin's function, called by pydicom."""
    samples = cast("bytearray", decode_openjpeg(source, version=2))
    _set_photometric(source, runner)
    precision = runner.get_option("j2k_precision", runner.bits_stored)
    runner.set_option("bits_allocated", 8 if precision <= 8 else 16 if precision <= 16 else 32)
    runner.set_option("planar_configuration", 0)
    return samples


def decode_rle(source: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """One RLE frame as its samples, colour by plane: the plugin's function, called by pydicom."""
    runner.set_option("planar_configuration", 1)
    _check_rle_header(source, runner.samples_per_pixel * max(1, runner.bits_allocated // 8))
    if runner.bits_allocated == 1:
        packed = np.frombuffer(imagecodecs.dicomrle_decode(source, "u1"), dtype=np.uint8)
        return np.unpackbits(packed, count=runner.rows * runner.columns, bitorder="little").tobytes()
    return imagecodecs.dicomrle_decode(source, f"<u{runner.bits_allocated // 8}")


def _set_photometric(source: bytes, runner: DecodeRunner) -> None:
    stated, syntax = str(runner.photometric_interpretation), runner.transfer_syntax
    runner.set_option("photometric_interpretation", photometric(syntax, stated, read_codestream(source)))


def _check_rle_header(source: bytes, expected: int) -> None:
    """Refuse a frame whose segments are not the expected ones, one after the other within it (PS3.5 G.5).

    imagecodecs trusts the offsets, and would read whatever memory they point to.
    """
    count, *offsets = struct.unpack_from("<16L", source)
    ends = [*offsets[1:expected], len(source)]
    if count != expected or not all(64 <= a <= b for a, b in zip(offsets[:expected], ends, strict=True)):
        raise ValueError("the segments of an RLE frame are not where they can be")


def _register() -> None:
    for syntax, function in _FUNCTIONS.items():
        registered = get_decoder(syntax)
        if _PACKAGES[syntax] not in registered.available_plugins:
            registered.add_plugin(_PACKAGES[syntax], (__name__, function))


_register()
