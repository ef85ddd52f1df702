"""Where a command will write: tried before the work, because hours later is too late to hear that it cannot."""

from __future__ import annotations

import tempfile
from pathlib import Path

from deepmcat_core.errors import ConfigError


def require_folder(folder: Path, option: str, *, called: str = "") -> None:
    """Make `folder` where there is none, and in it a folder with `called` in its name, which is removed again.

    Asking for permissions is not enough: to root they say yes on a read-only disk too. option: what the person gave,
    for the way out. Raises ConfigError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{called}.", dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, option, error) from error


def require_file(file: Path, option: str) -> None:
    """Try whether `file` can be written, and change nothing in it. Raises ConfigError."""
    try:
        if file.exists():
            with file.open("ab"):
                return
    except OSError as error:
        raise unwritable(file, option, error) from error
    require_folder(file.parent, option, called=file.name)


def unwritable(path: Path, option: str, error: OSError) -> ConfigError:
    """What to say where `path` cannot be written."""
    return ConfigError(f"cannot write to {path}: {error.strerror or 'the system refuses'}; choose another {option}")
