"""When to try again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from deepmcat_client.errors import ClientError, ServerClosing, TryAgain, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Up to `attempts` tries: waits double from `first_s` to `most_s`, halved at random so that callers spread out.

    Where the server says how long to wait, that is what is waited; over `longest_pushback_s` it is the caller's turn.
    A stream whose server has answered and is gone, as in a restart, is tried for `restart_s` whatever `attempts` says.
    """

    attempts: int = 6
    first_s: float = 0.2
    most_s: float = 5.0
    longest_pushback_s: float = 60.0
    restart_s: float = 60.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay_s(self, error: ClientError, failures: int, *, gone_s: float | None = None) -> float | None:
        """How long to wait after the `failures`-th failure in a row (from 1); None: give up.

        gone_s: since when a server that had answered fails; None where it never had.
        """
        if not isinstance(error, TryAgain):
            return None
        restarting = gone_s is not None and gone_s < self.restart_s and isinstance(error, ServerClosing | Unavailable)
        if failures >= self.attempts and not restarting:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= self.longest_pushback_s else None
        wait_s: float = min(self.most_s, self.first_s * 2 ** (failures - 1))
        return wait_s * self.rng.uniform(0.5, 1.0)


NO_RETRY = RetryPolicy(attempts=1, restart_s=0.0)
