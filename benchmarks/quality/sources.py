"""Digests of source files: what a result depends on, besides data and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

TRAINING = ("core/deepmcat_core/**/*.py", "trainer/deepmcat_trainer/**/*.py")
"""What a recipe depends on besides the bench's own code: all of it. Finer would be a guess."""

SCORING = (
    "benchmarks/quality/problems.py",
    "benchmarks/quality/features.py",
    "benchmarks/quality/task.py",
    "benchmarks/quality/baseline_methods.py",
    "benchmarks/quality/fitted.py",
    "benchmarks/quality/scoring.py",
    "benchmarks/quality/clicks.py",
    "benchmarks/quality/outliers.py",
    "benchmarks/baselines.py",
    "trainer/deepmcat_trainer/evaluate.py",
    "trainer/deepmcat_trainer/scores.py",
    "core/deepmcat_core/tree.py",
    *("core/deepmcat_core/encoder.py", "core/deepmcat_core/backbones/*.py"),
)
"""What every result depends on, and all that a baseline does."""


def files(patterns: Sequence[str], root: Path = ROOT) -> list[Path]:
    """The files of these patterns, in order. A pattern that finds none is a mistake: ValueError."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = set(root.glob(pattern))
        if not matches:
            raise ValueError(f"{pattern} names no file")
        found |= matches
    return sorted(found)


@cache
def digest(patterns: tuple[str, ...], root: Path = ROOT) -> str:
    """SHA-256 over names and contents of the files of these patterns."""
    total = hashlib.sha256()
    for path in files(patterns, root):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
