"""Promises about whatever Hypothesis makes of files: any damage, any lie in a header, any raw plane."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepmcat_core.decoding import MAGIC, decode
from deepmcat_core.errors import ImageError
from deepmcat_core.frame import FramePolicy, Intensity

from .promises import LIMITS
from .strategies import lying_objects, raw_planes, specimens

thorough = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@thorough
@given(specimen=specimens())
def test_no_damage_breaks_a_promise(specimen, inspector):
    """Up to four kinds of damage to a file of any kind: an image or one of our errors, and nothing else."""
    inspector.check(specimen.build())


@thorough
@given(made=lying_objects())
def test_no_lie_of_a_header_breaks_a_promise(made, inspector):
    """Whatever a header says of pixels that it does not have; what is an image all the same is of the size it says."""
    data, shape = made
    if inspector.check(data):
        return
    try:  # it did not end the worker, so it may be decoded here
        image = decode(data, intensity=Intensity(), frames=FramePolicy(count=1), limits=LIMITS)
    except ImageError:
        return  # where only part of the size could be decoded

    assert image.frames[0].pixels.shape == shape


@thorough
@given(data=st.binary(max_size=2000), start=st.sampled_from([b"", bytes(128) + b"DICM", *MAGIC]))
def test_no_bytes_break_a_promise(data, start, inspector):
    """Whatever follows what a format is recognised by."""
    inspector.check(start + data)


@thorough
@given(plane=raw_planes())
def test_no_raw_plane_breaks_a_promise(plane, inspector):
    """Whatever its sides, its type and its number of bytes."""
    inspector.check(plane)
