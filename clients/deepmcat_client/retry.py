"""When to try again, and after how long; and how much trying again a client may add to an outage."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from deepmcat_client.errors import ClientError, TryAgain


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Up to `attempts` tries: waits at random up to a bound that doubles from `first_s` to `most_s` ("full jitter").

    What the server asks to wait is waited before that; over `longest_pushback_s` it is the caller's turn. In a stream
    whose server has answered, tries go on for `restart_s` whatever `attempts` says: a restart loses no image, and nor
    does a busy hour's minute. budget, budget_per_s: of a RetryBudget, for all calls of a client together.
    """

    attempts: int = 6
    first_s: float = 0.2
    most_s: float = 5.0
    longest_pushback_s: float = 60.0
    restart_s: float = 60.0
    budget: float = 10.0
    budget_per_s: float = 1.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay_s(self, error: ClientError, failures: int, *, gone_s: float | None = None) -> float | None:
        """How long to wait after the `failures`-th failure in a row (from 1); None: give up.

        gone_s: since when a server that had answered fails; None where it never had.
        """
        if not isinstance(error, TryAgain):
            return None
        if failures >= self.attempts and not (gone_s is not None and gone_s < self.restart_s):
            return None
        pushback_s = error.retry_after_s or 0.0
        if pushback_s > self.longest_pushback_s:
            return None
        # Full jitter also after a pushback: callers that were all told the same must not come back together.
        bound_s: float = min(self.most_s, self.first_s * 2 ** min(failures - 1, 30))
        return pushback_s + self.rng.uniform(0.0, bound_s)


NO_RETRY = RetryPolicy(attempts=1, restart_s=0.0)


class RetryBudget:
    """Bounds retries of all calls together, as gRFC A6's throttling does, but late instead of never.

    A retry takes a token; there are `tokens`, `per_s` come back by themselves and EARNED with every answer. Where none
    is left a retry waits for its own, so that a client adds at most `per_s` calls a second to an outage, however many
    of its calls fail.
    """

    EARNED = 0.1

    def __init__(self, tokens: float, per_s: float, clock: Callable[[], float]) -> None:
        self._most = self._tokens = tokens
        self._per_s = per_s
        self._clock = clock
        self._counted_at = clock()

    def answered(self, times: int = 1) -> None:
        """Servers have answered."""
        self._refill(self.EARNED * times)

    def take(self) -> float:
        """Take a token for a retry: how many seconds until it is there."""
        self._refill(0.0)
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)

    def give_back(self) -> None:
        """A retry does not take place after all."""
        self._refill(1.0)

    def _refill(self, earned: float) -> None:
        now = self._clock()
        self._tokens = min(self._most, self._tokens + earned + (now - self._counted_at) * self._per_s)
        self._counted_at = now
