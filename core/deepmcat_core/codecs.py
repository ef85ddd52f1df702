"""Which codec decodes which transfer syntax, and our own pydicom plugins.

One codec per syntax, pinned: pydicom's own order depends on what else is installed, and lossy decoders differ by a grey
level or three, so an image would get other pixels on another machine. JPEG is decoded by imagecodecs (BSD;
libjpeg-turbo inside): 8 and 12 bits lossy, 2 to 16 bits lossless, where pydicom's usual choices read 8 bits only or
are under the GPL.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import cast

import imagecodecs
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
from rle.utils import decode_pixel_data as decode_rle_planes

NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})

_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)

# Transfer syntax → the package that decodes it, which is also the name of the pydicom plugin.
_PACKAGES: dict[str, str] = {
    **dict.fromkeys(_JPEG, "imagecodecs"),
    **dict.fromkeys(_JPEG_2000, "pylibjpeg-openjpeg"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    RLELossless: "pylibjpeg-rle",
}

# Package → the function of this module that calls it. pyjpegls comes with a plugin in pydicom; those of the pylibjpeg
# packages would want a framework that adds nothing here.
_PLUGINS = {"imagecodecs": "decode_jpeg", "pylibjpeg-openjpeg": "decode_jpeg_2000", "pylibjpeg-rle": "decode_rle"}

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
    return tuple(sorted(f"{package} {found}" for package, found in _VERSIONS.items()))


def is_available(uid: UID) -> bool:
    """Whether the plugin decodes a syntax; asked by pydicom."""
    return uid in DECODER_DEPENDENCIES


def decode_jpeg(source: bytes, runner: DecodeRunner) -> bytes:
    """One JPEG frame as its samples, colours not converted: the plugin's function, called by pydicom.

    Sets what the codestream knows better than the header: the container of a sample, the order of samples, and whether
    an encoder's Adobe marker says that colours are RGB or YCbCr.
    """
    # With in and out the same, libjpeg converts nothing; which name is given does not matter then.
    same = "YCBCR" if runner.samples_per_pixel > 1 else None
    samples = imagecodecs.jpeg8_decode(source, colorspace=same, outcolorspace=same)  # (H, W) or (H, W, 3)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    if samples.ndim == 3 and (transform := _adobe_transform(source)) is not None:
        runner.set_option("photometric_interpretation", "YBR_FULL" if transform else "RGB")
    return samples.tobytes()


def decode_jpeg_2000(source: bytes, runner: DecodeRunner) -> bytearray:
    """One JPEG 2000 or HTJ2K frame as its samples: the plugin's function, called by pydicom."""
    samples = cast("bytearray", decode_openjpeg(source, version=2))
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # OpenJPEG undoes the codestream's own transform
        runner.set_option("photometric_interpretation", "RGB")
    precision = runner.get_option("j2k_precision", runner.bits_stored)
    runner.set_option("bits_allocated", 8 if precision <= 8 else 16 if precision <= 16 else 32)
    runner.set_option("planar_configuration", 0)
    return samples


def decode_rle(source: bytes, runner: DecodeRunner) -> bytearray:
    """One RLE frame as its samples, colour by plane: the plugin's function, called by pydicom."""
    rows, columns, bits = runner.rows, runner.columns, runner.bits_allocated
    samples = decode_rle_planes(source, version=2, rows=rows, columns=columns, bits_allocated=bits)
    runner.set_option("planar_configuration", 1)
    return cast("bytearray", samples)


def _adobe_transform(source: bytes) -> int | None:
    """The colour transform of an Adobe APP14 marker: 0 none, 1 YCbCr; None without the marker."""
    found = source.find(b"\xff\xee\x00\x0eAdobe", 0, 4096)
    return source[found + 15] if 0 <= found < len(source) - 15 else None


def _register() -> None:
    for syntax, package in _PACKAGES.items():
        registered = get_decoder(syntax)
        if package in _PLUGINS and package not in registered.available_plugins:
            registered.add_plugin(package, (__name__, _PLUGINS[package]))


_register()
