"""PNG, JPEG and TIFF files of every mode that is read, small, and the same for the same seed."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from .objects import CANARY_TEXT, grey


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _image(rng: Random, mode: str) -> Image.Image:
    colours = grey(rng, 8, channels=3)[0]
    if mode in ("I;16", "I", "F"):
        values = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray((colours[..., 0].astype(np.float64) * 257).astype(values))
    return Image.fromarray(colours).convert(mode)


def _png(mode: str) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", CANARY_TEXT, zip=True)
        return _saved(_image(rng, mode), "PNG", pnginfo=info)

    return make


def _jpeg(mode: str, **options: Any) -> Callable[[Random], bytes]:
    return lambda rng: _saved(_image(rng, mode), "JPEG", comment=CANARY_TEXT, **options)


def _tiff(mode: str, compression: str = "raw", pages: int = 1) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        images = [_image(rng, mode) for _ in range(pages)]
        more = {"save_all": True, "append_images": images[1:]} if pages > 1 else {}
        return _saved(images[0], "TIFF", compression=compression, description=CANARY_TEXT, **more)

    return make


PLANE_FILES: dict[str, Callable[[Random], bytes]] = {
    **{f"png {mode}": _png(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"jpeg {mode}": _jpeg(mode) for mode in ("L", "RGB", "CMYK")},
    "jpeg progressive": _jpeg("RGB", progressive=True),
    "jpeg restarts": _jpeg("RGB", restart_marker_blocks=1, subsampling=2),
    **{f"tiff {mode}": _tiff(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")},
    **{
        f"tiff {name}": _tiff("L", name)
        for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "lzma", "zstd")
    },
    "tiff group 4": _tiff("1", "group4"),
    "tiff pages": _tiff("L", pages=4),
}


@lru_cache(maxsize=256)
def make_plane_file(name: str, seed: int) -> bytes:
    """A file of that name of `PLANE_FILES`; the same for the same seed."""
    return PLANE_FILES[name](Random(f"{name} {seed}"))
