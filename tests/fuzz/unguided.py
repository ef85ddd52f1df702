"""Fuzzing with Hypothesis, for as long as there is time: no knowledge of what the code does, but of what files are."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from deepmcat_core.frame import ImageSource

from .inspection import Inspector
from .promises import BrokenPromise
from .strategies import lying_objects, raw_planes, specimens

_ROUND = 200  # files between two looks at the clock

_FILES: st.SearchStrategy[ImageSource] = st.one_of(
    specimens().map(lambda specimen: specimen.build()),
    lying_objects().map(lambda made: made[0]),
    raw_planes(),
)


class UnguidedRun:
    """Rounds of generated files. findings: one file for every way that a promise is broken in."""

    def __init__(self, inspector: Inspector, first_seed: int) -> None:
        self._inspector = inspector
        self._seed = first_seed
        self._outcomes: Counter[str] = Counter()
        self._found: dict[str, bytes] = {}
        self._seconds = 0.0

    @property
    def findings(self) -> list[bytes]:
        """Files that broke a promise."""
        return list(self._found.values())

    def run(self, deadline: float) -> None:
        """Until time.monotonic() is there."""
        started = time.monotonic()
        while time.monotonic() < deadline:
            self._round(deadline)
            self._seed += 1
        self._seconds = time.monotonic() - started

    def summary(self) -> str:
        """How much was tried, and what came of it."""
        count = sum(self._outcomes.values())
        outcomes = ", ".join(f"{name or 'images'} {number}" for name, number in sorted(self._outcomes.items()))
        return f"Hypothesis: {count} files, {count / max(self._seconds, 1):.0f} a second: {outcomes}"

    def _round(self, deadline: float) -> None:
        @seed(self._seed)
        @settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # what is found is made small later, in bytes
            suppress_health_check=list(HealthCheck),
        )
        @given(source=_FILES)
        def attempt(source: ImageSource) -> None:
            if time.monotonic() < deadline:
                self._try(source)

        attempt()

    def _try(self, source: ImageSource) -> None:
        try:
            self._outcomes[self._inspector.check(source)] += 1
        except BrokenPromise as broken:
            self._outcomes["broken promises"] += 1
            if isinstance(source, bytes):
                self._found.setdefault(broken.kind, source)
            else:
                raise  # a raw plane is small, and Hypothesis prints it
