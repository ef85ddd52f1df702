"""Which split an image belongs to: decided by a keyed hash of its patient, so that no patient is on two sides.

    subject ──HMAC-SHA-256──► a point in [0, 1) ──► fit | calibration | test

A subject is a patient, or an image where the patient is unknown. The point depends on key and subject alone: the
split of an image does not change when the archive grows, and nobody without the key can tell it from the id.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum

from deepmcat_core.errors import ConfigError

_DOMAIN = b"split\0"
_POINTS = 2**64


class Split(StrEnum):
    """What the images of a split are for. `train` opens fit and calibration only."""

    FIT = "fit"
    CALIBRATION = "calibration"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How much goes to each split, in percent of the subjects."""

    fit: int
    calibration: int
    test: int

    def __post_init__(self) -> None:
        """Refuse shares that are not a division of the whole, or that leave nothing to fit."""
        parts = (self.fit, self.calibration, self.test)
        if min(parts) < 0 or sum(parts) != 100 or self.fit == 0:
            raise ConfigError(
                f"the split is {self}; it takes three whole percentages that add up to 100, the first above 0, "
                "such as 60/10/30"
            )

    def __str__(self) -> str:
        """As `--split` takes it."""
        return f"{self.fit}/{self.calibration}/{self.test}"

    @classmethod
    def parse(cls, text: str) -> Shares:
        """The shares of `60/10/30`. Raises ConfigError."""
        parts = text.split("/")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise ConfigError(f"--split is {text!r}; it takes FIT/CALIBRATION/TEST in percent, such as 60/10/30")
        fit, calibration, test = (int(part) for part in parts)
        return cls(fit=fit, calibration=calibration, test=test)

    def of(self, split: Split) -> int:
        """The share of one split in percent."""
        return {Split.FIT: self.fit, Split.CALIBRATION: self.calibration, Split.TEST: self.test}[split]


UNLABELLED = Shares(fit=90, calibration=10, test=0)
LABELLED = Shares(fit=60, calibration=10, test=30)


def split_of(key: bytes, subject: str, shares: Shares) -> Split:
    """The split of a subject: a patient key, or an image id where the patient is unknown."""
    digest = hmac.digest(key, _DOMAIN + subject.encode(), hashlib.sha256)
    point = int.from_bytes(digest[:8], "big") * 100
    if point < shares.fit * _POINTS:
        return Split.FIT
    if point < (shares.fit + shares.calibration) * _POINTS:
        return Split.CALIBRATION
    return Split.TEST
