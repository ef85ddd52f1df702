"""Promises about the check of promises: each that is broken is noticed, and whoever breaks it."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

import numpy as np
import pytest

from deepmcat_core.decoding import decode
from deepmcat_core.errors import CorruptImage, ImageError
from deepmcat_core.frame import Image
from deepmcat_core.planes import Planes, read_planes

from .minimise import minimised
from .objects import CANARY_TEXT
from .promises import BrokenPromise, check
from .specimens import ORIGINALS

WHOLE = ORIGINALS["ExplicitVRLittleEndian, grey 8"](0)


def raising(error: BaseException) -> Any:
    def read(*args: object, **options: object) -> Image:
        raise error

    return read


def doing(action: Any) -> Any:
    def read(source: Any, **options: Any) -> Image:
        action()
        return decode(source, **options)

    return read


def end_the_process(source: object) -> str:
    os._exit(3)


def with_frame(**changes: Any) -> Any:
    def read(source: Any, **options: Any) -> Image:
        image = decode(source, **options)
        return dataclasses.replace(image, frames=(dataclasses.replace(image.frames[0], **changes),))

    return read


def test_a_whole_file_is_an_image():
    """What keeps every promise has no reason to be refused."""
    assert check(WHOLE) == ""


@pytest.mark.parametrize(
    ("decode_image", "said"),
    [
        (raising(ValueError("x")), "ValueError instead of an ImageError"),
        (raising(SystemExit()), "SystemExit instead of an ImageError"),
        (raising(CorruptImage(f"the image is of {CANARY_TEXT}")), "an error quotes the header"),
        (raising(CorruptImage("two lines\nof text, at least")), "not one sentence"),
        (raising(ImageError("the image is not what it was")), "no reason of its own"),
        (with_frame(pixels=np.full((3, 3), np.nan, dtype=np.float32)), "no number"),
        (with_frame(pixels=np.full((3, 3), 2, dtype=np.float32), deep=False), "not from 0 to 1"),
        (with_frame(known=np.ones((3, 3), dtype=bool)), "a mask of another shape"),
        (with_frame(pixels=np.zeros((3, 3))), "neither of float32 nor of bytes"),
        (with_frame(pixels=np.zeros((3, 3, 3), dtype=np.float32)), "no plane within"),
        (with_frame(pixels=np.zeros((3, 3), dtype=np.uint8), deep=False), "neither of float32 nor of bytes"),
        (with_frame(pixel_aspect=1e9), "pixel aspect"),
        (with_frame(index=1), "other frames"),
        (doing(lambda: warnings.warn("x", stacklevel=1)), "UserWarning gets out"),
        (doing(lambda: os.write(2, b"x")), "written to the terminal"),
        (doing(lambda: os.write(1, b"x")), "written to the terminal"),
        (doing(lambda: np.ones(300 * 2**20, dtype=np.uint8)), "more memory than"),
    ],
)
def test_a_broken_promise_is_noticed(decode_image, said):
    """Other errors, quotes of the header, values that are no grey, noise on the terminal, memory."""
    with pytest.raises(BrokenPromise, match=said):
        check(WHOLE, decode_image)


def test_pixels_that_nobody_has_written_are_noticed():
    """They are whatever was in memory before, so they are others the second time: another patient's, at worst."""

    def read(source: Any, options: Any) -> Planes:
        planes = read_planes(source, options)
        rubbish = np.empty(planes.planes.size + 2**16, dtype=np.uint8)[: planes.planes.size]
        return dataclasses.replace(planes, planes=rubbish.reshape(planes.planes.shape))

    with pytest.raises(BrokenPromise, match="two answers"):
        check(WHOLE, read=read)


def test_a_worker_that_dies_is_a_broken_promise(inspector):
    """A codec that crashes is found, and the next file is checked as if nothing had been."""
    with pytest.raises(BrokenPromise, match="the worker dies: crash"):
        inspector.check(WHOLE, end_the_process)

    assert inspector.check(WHOLE) == ""


def test_a_file_is_made_small():
    """What is not needed goes, what is needed stays."""
    small = minimised(b"abcdefgh" * 50 + b"NEEDED" + b"xyz" * 70, lambda data: b"NEEDED" in data, budget_s=60)

    assert small == b"NEEDED"
