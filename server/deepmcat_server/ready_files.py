"""The ready file: where a server listens, for whoever started it on free ports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deepmcat_core.errors import ConfigError
from deepmcat_server.addresses import Address, parse_address


class Written(NamedTuple):
    """Where a server listens that is SERVING."""

    listen: Address
    admin: Address


def clear(path: Path) -> None:
    """Remove the file of a server before this one. Raises ConfigError."""
    with _writing(path):
        path.unlink(missing_ok=True)


def write(path: Path, *, listen: Address, admin: Address) -> None:
    """Write the addresses; the file appears whole, by a rename. Raises ConfigError."""
    partial = path.with_name(f".{path.name}.partial")
    with _writing(path):
        partial.write_text(json.dumps({"listen": str(listen), "admin": str(admin)}), encoding="utf-8")
        partial.replace(path)


def read(path: Path) -> Written | None:
    """What a server has written; None: nothing yet."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Written(listen=parse_address(written["listen"]), admin=parse_address(written["admin"]))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write the ready file {path}: {error.strerror}") from error
