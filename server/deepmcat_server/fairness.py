"""Whose turn it is: of the callers that wait, the one that has had least; of one caller's items, the oldest.

Start-time fair queueing with one tag a caller (Goyal, Vin and Cheng 1996): every caller has a virtual time, which grows
by the cost of each of its items that is served. The least goes next, and who comes anew starts where the last served
one stood: nobody saves up turns while away, and nobody waits behind all that another has piled up. With one caller it
is first come, first served.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


@dataclass(slots=True, eq=False)
class _Line(Generic[Item]):
    """One caller's items. had: its virtual time."""

    had: float
    turn: int  # among equals, who came first
    waiting: dict[Item, float] = field(default_factory=dict)  # in order of arrival, with the cost of each
    cost: float = 0.0

    def __lt__(self, other: _Line[Item]) -> bool:
        return (self.had, self.turn) < (other.had, other.turn)


class FairQueue(Generic[Item]):
    """Items that wait, each of a caller and with a cost. Adding, leaving and serving take O(log callers)."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}
        self._heap: list[tuple[_Line[Item], str]] = []  # also lines that are empty, until their virtual time has come
        self._now = 0.0
        self._turns = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        """The number of items."""
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """All items, those of each caller in order of arrival."""
        return itertools.chain.from_iterable(line.waiting for line in self._lines.values())

    def __contains__(self, caller: str) -> bool:
        """Whether something of the caller waits."""
        line = self._lines.get(caller)
        return line is not None and bool(line.waiting)

    def add(self, item: Item, caller: str, cost: float) -> None:
        """Wait behind the caller's others."""
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = _Line(self._now, next(self._turns))
            heapq.heappush(self._heap, (line, caller))
        elif not line.waiting and line.had < self._now:
            line.had = self._now
            heapq.heapify(self._heap)
        line.waiting[item] = cost
        line.cost += cost
        self._length += 1

    def discard(self, item: Item, caller: str) -> None:
        """Leave without having been served; nothing where it is not there."""
        line = self._lines.get(caller)
        if line is not None and item in line.waiting:
            self._take(line, item)

    def serve(self, item: Item, caller: str) -> None:
        """Leave, and have it counted to the caller."""
        line = self._lines[caller]
        self._now = max(self._now, line.had)
        line.had += self._take(line, item)
        if self._heap[0][0] is line:
            heapq.heapreplace(self._heap, (line, caller))
        else:
            heapq.heapify(self._heap)

    def first(self) -> Item | None:
        """Whose turn it is; None where nothing waits."""
        while self._heap:
            line, caller = self._heap[0]
            if line.waiting:
                return next(iter(line.waiting))
            heapq.heappop(self._heap)
            del self._lines[caller]
        return None

    def heads(self) -> list[Item]:
        """The oldest item of each caller that waits, in the order of their turns."""
        return [next(iter(line.waiting)) for line in sorted(self._lines.values()) if line.waiting]

    def ahead(self, caller: str, coming: Mapping[str, float]) -> float:
        """The cost of what is served before an item of `caller` that came now.

        coming: the cost of what callers, itself among them, add before that. Another's counts as far as its virtual
        time stays behind that of the item.
        """
        own = self._lines.get(caller)
        start, cost = (max(own.had, self._now), own.cost) if own else (self._now, 0.0)
        cost += coming.get(caller, 0.0)
        start += cost
        for other in self._lines.keys() | coming.keys():
            if other != caller:
                line = self._lines.get(other)
                had, waiting = (line.had, line.cost) if line else (self._now, 0.0)
                cost += max(0.0, min(waiting + coming.get(other, 0.0), start - had))
        return cost

    def callers(self) -> frozenset[str]:
        """Those of whom something waits."""
        return frozenset(caller for caller, line in self._lines.items() if line.waiting)

    def count(self, caller: str) -> int:
        """How many items of a caller wait."""
        line = self._lines.get(caller)
        return len(line.waiting) if line else 0

    def _take(self, line: _Line[Item], item: Item) -> float:
        cost = line.waiting.pop(item)
        line.cost = math.fsum((line.cost, -cost)) if line.waiting else 0.0
        self._length -= 1
        return cost
