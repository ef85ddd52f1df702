"""Digests of source files: what a result depends on, besides data and settings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"deepmcat_core": "core", "deepmcat_trainer": "trainer"}

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


def closure(*modules: str, without: Collection[str] = ()) -> tuple[str, ...]:
    """The paths of modules of ours and of all that they import of ours, anywhere in their code, at any remove.

    without: modules that are left out, with what is imported only through them.
    """
    waiting, found = list(modules), set[Path]()
    while waiting:
        module = waiting.pop()
        path = None if module in without else _path(module)
        if path is not None and path not in found:
            found.add(path)
            waiting += _imported(path)
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


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


def _path(module: str) -> Path | None:
    """The file of a module or a package of ours; None for what is none, such as a function imported from a module."""
    if (top := PACKAGES.get(module.partition(".")[0])) is None:
        return None
    base = ROOT / top / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _path(name) else node.module for name in names)


NO_PART = frozenset(f"deepmcat_core.{name}" for name in ("artifact", "errors", "frame", "preprocessing"))
"""What has no part in a result: how artifacts are kept, and how images are read; a corpus's digest has their pixels."""

TRAINING = closure(
    "deepmcat_trainer.recipes", "deepmcat_trainer.grouping", "deepmcat_trainer.onnx_export", without=NO_PART
)
"""What a recipe depends on besides the bench's own code."""
