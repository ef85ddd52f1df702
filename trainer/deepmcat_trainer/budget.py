"""`--time-budget`: how long a command may take, in a person's words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deepmcat_core.errors import ConfigError

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds of "90s", "10m", "1.5h". Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"--time-budget is {text!r}; a number with s, m or h is needed, such as 90s, 10m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


@dataclass(slots=True)
class Budget:
    """A budget that runs from its construction. seconds: None for no bound. clock: seconds, monotonic."""

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        """Start."""
        self._start = self.clock()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._start

    def fits(self, seconds: float) -> bool:
        """Whether `seconds` more stay within the budget."""
        return self.seconds is None or self.used + seconds <= self.seconds
