"""A worker that checks promises, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .inspection import Inspector, inspecting


@pytest.fixture(scope="session", name="inspector")
def inspector_fixture() -> Iterator[Inspector]:
    with inspecting() as inspector:
        yield inspector
