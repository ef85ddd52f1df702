"""What a method of the bench is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality import sources
from benchmarks.quality.features import Source
from benchmarks.quality.fitted import Fitted
from benchmarks.quality.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """settings: part of what identifies a result. source: the features it needs, by seed; None where it needs none.

    depends: the source files that a result depends on, besides those of scoring. labels: whether it sees the labels
    of the fit split. scratch: without weights that others trained. verdicts: gives p-values. slow: only run when asked
    for. only: the start of the names of the problems that it is for. seconds_at: (fit images, seconds), a guess before
    anything is known.
    """

    name: str
    summary: str
    fit: Callable[[Task], Fitted]
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Callable[[int], Source] | None = None
    depends: tuple[str, ...] = ()
    labels: bool = False
    scratch: bool = False
    verdicts: bool = False
    slow: bool = False
    only: str = ""
    seconds_at: tuple[int, float] = (14_000, 30.0)

    def version(self) -> str:
        """Digest of the sources that a result of this method depends on."""
        return sources.digest((*sources.SCORING, *self.depends))
