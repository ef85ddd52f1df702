"""How long work takes, learnt from how long it took: running means that forget."""

from __future__ import annotations

import math

STIFFNESS = 0.01
"""How much the slope of batch times is held to "twice the frames, twice the time" where sizes hardly vary: in squares
of the mean size."""


class Decaying:
    """The mean and the mean deviation of a series, of which each value counts `keep` times as much as the next."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._weight = self._sum = self._deviations = 0.0

    @property
    def weight(self) -> float:
        """How many values count."""
        return self._weight

    @property
    def mean(self) -> float | None:
        """None before the first value."""
        return self._sum / self._weight if self._weight else None

    @property
    def deviation(self) -> float:
        """How far values lie from the mean, on average."""
        return self._deviations / self._weight if self._weight else 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """The next value."""
        off = abs(value - (value if self.mean is None else self.mean))
        self._weight = self._weight * self._keep + weight
        self._sum = self._sum * self._keep + value * weight
        self._deviations = self._deviations * self._keep + off * weight


class Rate:
    """How many a second, over about the last `memory_s` seconds."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._count = 0.0
        self._at = 0.0

    def add(self, count: float, now: float) -> None:
        """So many more."""
        self._count = self._left(now) + count
        self._at = now

    def per_s(self, now: float) -> float:
        """The rate."""
        return self._left(now) / self._memory_s

    def _left(self, now: float) -> float:
        return self._count * math.exp((self._at - now) / self._memory_s) if self._count else 0.0


class BatchTimes:
    """Seconds of a batch of n frames as a + b·n: least squares over the last batches, `keep` as for Decaying.

    Neither a nor b is below 0. Where all batches have the same size nothing tells a from b, and STIFFNESS decides.
    """

    def __init__(self, keep: float = 0.9) -> None:
        self._keep = keep
        self._weight = self._frames = self._seconds = self._frames2 = self._products = 0.0
        self._line: tuple[float, float] | None = None  # a and b

    def begin_like(self, other: BatchTimes) -> None:
        """Expect what `other` does until batches have run here; all of its together count as one of these."""
        if self._line is None and other._line is not None:
            share = 1 / other._weight
            self._weight, self._line = 1.0, other._line
            self._frames, self._seconds = other._frames * share, other._seconds * share
            self._frames2, self._products = other._frames2 * share, other._products * share

    def add(self, frames: int, seconds: float) -> None:
        """A batch has run."""
        self._weight = self._weight * self._keep + 1
        self._frames = self._frames * self._keep + frames
        self._seconds = self._seconds * self._keep + seconds
        self._frames2 = self._frames2 * self._keep + frames * frames
        self._products = self._products * self._keep + frames * seconds
        self._line = self._fit()

    def seconds(self, frames: float) -> float | None:
        """How long a batch of so many frames takes; None before the first."""
        if self._line is None:
            return None
        a, b = self._line
        return a + b * frames

    def _fit(self) -> tuple[float, float]:
        frames_mean, seconds_mean = self._frames / self._weight, self._seconds / self._weight
        proportional = seconds_mean / frames_mean
        hold = STIFFNESS * frames_mean**2
        variance = self._frames2 / self._weight - frames_mean**2
        covariance = self._products / self._weight - frames_mean * seconds_mean
        slope = min(max((covariance + hold * proportional) / (variance + hold), 0.0), proportional)
        return seconds_mean - slope * frames_mean, slope
