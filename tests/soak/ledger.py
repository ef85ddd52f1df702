"""The books of a run: what was sent, what came of it, what was done to the servers, and which promises were broken."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from deepmcat_client.errors import ClientError, TryAgain
from deepmcat_client.results import Categorization

from .oracle import Asked, Oracle, difference

OK = "ok"
OFFENDERS = 5  # of a kind, told in full


@dataclass(frozen=True, slots=True, kw_only=True)
class Offence:
    """A broken promise. promise: one of a few words, what: all that is known."""

    promise: str
    who: str
    what: str


class Ledger:
    """Counts, and judges every answer by the oracle. Callers name themselves by what they do."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.sent: Counter[str] = Counter()
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.again: Counter[str] = Counter()
        self.vanished: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.offences: list[Offence] = []

    @property
    def unanswered(self) -> Mapping[str, int]:
        """By caller: images of which nothing is known."""
        known = {who: self.outcomes[who].total() + self.vanished[who] for who in self.sent}
        return {who: sent - known[who] for who, sent in self.sent.items() if sent != known[who]}

    def sends(self, who: str, images: int = 1) -> None:
        """An image is sent for the first time."""
        self.sent[who] += images

    def vanishes(self, who: str, images: int) -> None:
        """A caller goes, and nobody will know what became of these."""
        self.vanished[who] += images

    def retries(self, error: TryAgain) -> None:
        """An image is sent once more, as the server asked."""
        self.again[error.reason] += 1

    def answered(self, who: str, asked: Asked, answer: Categorization | ClientError) -> None:
        """The last word on an image: right, wrong, or an error, which is a loss where the image has an answer."""
        if isinstance(answer, Categorization):
            self.outcomes[who][OK] += 1
            if wrong := self._wrong(asked, answer):
                self.breaks("wrong answer", who, f"{asked.specimen.name}, frames {asked.frames}: {wrong}")
            return
        self.outcomes[who][answer.reason] += 1
        if answer.reason != (reason := self._oracle.reason(asked)):
            promise = "wrong answer" if reason and not isinstance(answer, TryAgain) else "lost image"
            what = f"{asked.specimen.name}: {answer.reason} ({answer}) instead of {reason or 'an answer'}"
            self.breaks(promise, who, what)

    def breaks(self, promise: str, who: str, what: str) -> None:
        """A promise is broken."""
        self.broken[promise] += 1
        if self.broken[promise] <= OFFENDERS:
            self.offences.append(Offence(promise=promise, who=who, what=what))

    def happens(self, event: str) -> None:
        """Something is done to the servers."""
        self.events[event] += 1

    def _wrong(self, asked: Asked, answer: Categorization) -> str:
        expected = self._oracle.expected(asked, answer.artifact_id, answer.catalog_version)
        if expected is None:
            return f"no artifact {answer.artifact_id[:12]} with catalog version {answer.catalog_version}"
        if isinstance(expected, Exception):
            return f"an answer instead of {expected.reason}"
        return difference(answer, expected, asked)
