"""Which code made an artifact."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path


def version() -> str:
    """The installed release."""
    return importlib.metadata.version("deepmcat")


def commit() -> str:
    """The git commit that this code runs from, with "-dirty" where files were changed; "" outside a checkout.

    An installed package may lie inside somebody else's repository, so git is asked whether it tracks this very file.
    """
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return ""
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
