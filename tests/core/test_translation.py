"""What other people's decoders have to say stays with them, and what others have to say does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from deepmcat_core.decoding import decode
from deepmcat_core.errors import CorruptImage
from deepmcat_core.frame import FramePolicy, Intensity, Limits


@pytest.fixture(scope="module", name="damaged_tiff")
def damaged_tiff_fixture() -> bytes:
    """A TIFF whose compressed strip is rubbish, which libtiff complains of."""
    file = io.BytesIO()
    PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(
        file, "TIFF", compression="tiff_lzw"
    )
    data = bytearray(file.getvalue())
    data[40:400] = b"\x80" * 360
    return bytes(data)


def load(data: bytes) -> None:
    """By Pillow, with nobody in between."""
    with PillowImage.open(io.BytesIO(data)) as image:
        image.load()


def test_libtiff_is_silent_while_an_image_is_decoded(damaged_tiff, capfd):
    """It writes errors to the terminal where it has no handler, and they are of what a caller has sent."""
    with pytest.raises(CorruptImage):
        decode(damaged_tiff, intensity=Intensity(), frames=FramePolicy(), limits=Limits())

    assert capfd.readouterr().err == ""


def test_libtiff_has_its_say_to_others(damaged_tiff, capfd):
    """Before and after: a program that this is a library of reads TIFFs of its own."""
    for _ in range(2):
        with pytest.raises(OSError, match=r"decoder error|broken|truncated"):
            load(damaged_tiff)
        assert capfd.readouterr().err != ""

        with pytest.raises(CorruptImage):
            decode(damaged_tiff, intensity=Intensity(), frames=FramePolicy(), limits=Limits())
        assert capfd.readouterr().err == ""
