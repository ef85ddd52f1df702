"""When to try again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from deepmcat_client.errors import ClientError, TryAgain


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Up to `attempts` tries: waits double from `first_s` to `most_s`, halved at random so that callers spread out.

    Where the server says how long to wait, that is what is waited; over `longest_pushback_s` it is the caller's turn.
    """

    attempts: int = 6
    first_s: float = 0.2
    most_s: float = 5.0
    longest_pushback_s: float = 60.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay_s(self, error: ClientError, failures: int) -> float | None:
        """How long to wait after the `failures`-th failure in a row (from 1); None: give up."""
        if not isinstance(error, TryAgain) or failures >= self.attempts:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= self.longest_pushback_s else None
        wait_s: float = min(self.most_s, self.first_s * 2 ** (failures - 1))
        return wait_s * self.rng.uniform(0.5, 1.0)


NO_RETRY = RetryPolicy(attempts=1)
