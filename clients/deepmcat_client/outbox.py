"""The images of a stream that have no answer yet: which is sent next, and when there is room for it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from deepmcat_client.errors import ClientError, QuotaExceeded
from deepmcat_client.requests import Source
from deepmcat_client.results import Categorization
from deepmcat_client.window import SendWindow

Key = TypeVar("Key")
Answer = Categorization | ClientError


@dataclass(slots=True, eq=False)
class Item(Generic[Key]):
    """One image on its way. number: its place, from 1. failures: how often a server sent it back, first when."""

    number: int
    key: Key
    source: Source
    answer: asyncio.Future[Answer]
    failures: int = 0
    first_failed_at: float = 0.0


class Outbox(Generic[Key]):
    """What is to be sent, the oldest first, because all others wait for its answer.

    Every image is in one of three places: here, on a call, or waiting until it is sent again.
    """

    def __init__(self, window: SendWindow) -> None:
        self.window = window
        self.heard = 0
        """Answers of servers, those to send an image again included."""
        self._heap: list[tuple[int, Item[Key]]] = []
        self._unanswered = 0
        self._all_fed = False
        self._paused_until = 0.0
        self._changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether everything is answered and nothing more comes."""
        return self._all_fed and not self._unanswered

    def add(self, item: Item[Key]) -> None:
        """A new image."""
        self._unanswered += 1
        self.put_back(item)

    def end(self) -> None:
        """Nothing more comes."""
        self._all_fed = True
        self._wake()

    def put_back(self, item: Item[Key]) -> None:
        """An image that is to be sent, for the first time or again."""
        heapq.heappush(self._heap, (item.number, item))
        self._wake()

    def put_back_later(self, item: Item[Key], delay_s: float) -> None:
        """An image that a server has asked to send again later."""
        asyncio.get_running_loop().call_later(delay_s, self.put_back, item)

    async def take(self, has_room: Callable[[], bool] = lambda: True) -> Item[Key] | None:
        """The image to send next, as soon as there is one and room for it; None when everything is answered."""
        loop = asyncio.get_running_loop()
        while not (self._heap and has_room() and loop.time() >= self._paused_until):
            if self.finished:
                return None
            await self._changed.wait()
        return heapq.heappop(self._heap)[1]

    def heard_of(self, answer: Answer) -> None:
        """Take notice of what a server says: it may be to send less, or nothing for a while."""
        self.heard += 1
        self.window.heard(answer)
        if isinstance(answer, QuotaExceeded) and answer.retry_after_s:
            # What is sent before then is refused too.
            loop = asyncio.get_running_loop()
            self._paused_until = loop.time() + answer.retry_after_s
            loop.call_at(self._paused_until, self._wake)
        self._wake()

    def settle(self, item: Item[Key], answer: Answer) -> None:
        """An image's final answer."""
        self._unanswered -= 1
        if not item.answer.done():  # cancelled with the stream
            item.answer.set_result(answer)
        self._wake()

    def _wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()
