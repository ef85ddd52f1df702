"""Means, spreads, and when a difference may be called one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """n values: their mean, and sample standard deviation (n − 1); the latter NaN for one."""

    n: int
    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """The summary of at least one value."""
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(n=len(values), mean=float(np.mean(values)), sd=sd)

    def interval(self) -> tuple[float, float]:
        """The 95 % t-interval of the mean; everything where there is one value."""
        if self.n < 2:
            return -math.inf, math.inf
        half = float(t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def above(self, other: Summary) -> bool:
        """Whether this interval lies wholly above the other's: only then is it called better."""
        return self.interval()[0] > other.interval()[1]

    def text(self, digits: int = 3) -> str:
        """mean ± sd."""
        spread = "" if math.isnan(self.sd) else f" ± {self.sd:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"
