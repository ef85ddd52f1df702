"""What `deepmcat doctor` finds: one line a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check went. An absent part that nobody asked for is a note, not a failure."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the screen."""

    name: str
    status: Status
    detail: str
