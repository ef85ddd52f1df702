"""Bounded room that callers share: how many images are somewhere at once, with their bytes and frames.

Who finds no room waits, in fair order (fairness.py). What is short for all holds back everybody behind the one whose
turn it is, so that small images do not pass a large one for ever; what is short for one caller holds back that caller.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from deepmcat_server.fairness import FairQueue

SHARE = 4
"""A caller may have this many times as much inside as is still free: one alone four fifths, and a newcomer finds room.

A dynamic threshold (Choudhury and Hahne 1998): nothing has to be set up for callers that may never come.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """What one image takes, and whose it is. frames: at most. cost: what it counts for whose turn it is."""

    caller: str = ""
    size_bytes: int = 0
    frames: int = 1
    cost: float = 1.0


LoadT = TypeVar("LoadT", bound=Load)


class Obstacle(StrEnum):
    """What keeps an image out."""

    IMAGES = "images"
    BYTES = "bytes"
    FRAMES = "frames"
    WAITING = "waiting"  # others, who came before
    SHARE = "share"  # the caller has its share inside
    TIME = "time"  # there is room, and too much to do


GENERAL = frozenset({Obstacle.IMAGES, Obstacle.BYTES, Obstacle.FRAMES})
"""What is short for all."""


class Place(Generic[LoadT]):
    """Room for one image. Given back once, by `release` or by leaving it as a context."""

    def __init__(self, room: Room[LoadT], load: LoadT) -> None:
        self._room: Room[LoadT] | None = room
        self.load = load
        self.frames = load.frames

    def shrink(self, frames: int) -> None:
        """The image has only so many frames: give back the room of the others."""
        if self._room is not None and frames < self.frames:
            frames, self.frames = self.frames - frames, frames
            self._room._give_back(self.load.caller, (0, 0, frames))

    def release(self) -> None:
        """Give the room back; a second time does nothing."""
        room, self._room = self._room, None
        if room is not None:
            room._on_leave(self.load)
            room._give_back(self.load.caller, (1, self.load.size_bytes, self.frames))

    def __enter__(self) -> None:
        """Nothing: the place is held already."""

    def __exit__(self, *exc_info: object) -> None:
        """Give the room back."""
        self.release()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[LoadT]):
    load: LoadT
    admitted: asyncio.Future[Place[LoadT]]


@dataclass(slots=True)
class _Inside:
    """How much is inside."""

    images: int = 0
    size_bytes: int = 0
    frames: int = 0

    def add(self, sign: int, amounts: tuple[int, int, int]) -> None:
        self.images += sign * amounts[0]
        self.size_bytes += sign * amounts[1]
        self.frames += sign * amounts[2]


class Room(Generic[LoadT]):
    """Room for so many images, bytes and frames together. One image that is larger than all of it gets in alone.

    shared: whether a caller has to leave room for others. in_time: whether an image may come now, for reasons other
    than room; asked again whenever room is given back, and not where nothing is inside. on_enter, on_leave: told of
    each, at once. Used on the event loop only.
    """

    def __init__(
        self,
        *,
        max_images: float,
        max_bytes: float = math.inf,
        max_frames: float = math.inf,
        shared: bool = False,
        in_time: Callable[[LoadT], bool] = lambda load: True,
        on_enter: Callable[[LoadT], None] = lambda load: None,
        on_leave: Callable[[LoadT], None] = lambda load: None,
    ) -> None:
        self.max_images, self.max_bytes, self.max_frames = max_images, max_bytes, max_frames
        self.inside = _Inside()
        self._shared = shared
        self._in_time = in_time
        self._on_enter, self._on_leave = on_enter, on_leave
        self._callers: dict[str, _Inside] = {}
        self._waiting: FairQueue[_Waiter[LoadT]] = FairQueue()
        self._blocked = False  # whether what is short for all keeps out the one whose turn it is

    @property
    def waiting(self) -> FairQueue[_Waiter[LoadT]]:
        """Those who wait for room."""
        return self._waiting

    def inside_of(self, caller: str) -> int:
        """The number of a caller's images inside."""
        inside = self._callers.get(caller)
        return inside.images if inside else 0

    def callers(self) -> frozenset[str]:
        """Those who have something inside."""
        return frozenset(self._callers)

    def keeps_out(self, load: LoadT) -> Obstacle | None:
        """What keeps an image from entering at once. Does not ask for time."""
        return self._room_obstacle(load) or (Obstacle.WAITING if self._blocked else None)

    def try_enter(self, load: LoadT) -> Place[LoadT] | Obstacle:
        """A place at once, or what keeps the image out. Does not ask for time."""
        return self.keeps_out(load) or self._admit(load)

    def enter_in_turn(self, load: LoadT) -> Place[LoadT] | None:
        """A place, where there is room and time and nobody before whom the image would pass; None: it has to wait."""
        if load.caller in self._waiting or self._blocked or self._obstacle(load) is not None:
            return None
        return self._admit(load)

    async def enter(self, load: LoadT) -> Place[LoadT]:
        """A place, as soon as there is room and time and it is the image's turn."""
        if (place := self.enter_in_turn(load)) is not None:
            return place
        waiter = _Waiter(load, asyncio.get_running_loop().create_future())
        self._waiting.add(waiter, load.caller, load.cost)
        self._admit_waiters()
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                waiter.admitted.result().release()  # admitted and cancelled in the same turn of the loop
            else:
                self._waiting.discard(waiter, load.caller)
                self._admit_waiters()  # the one behind may fit where this one did not
            raise

    def _obstacle(self, load: LoadT) -> Obstacle | None:
        if obstacle := self._room_obstacle(load):
            return obstacle
        return None if self.inside.images == 0 or self._in_time(load) else Obstacle.TIME

    def _room_obstacle(self, load: LoadT) -> Obstacle | None:
        inside = self.inside
        if inside.images == 0:
            return None
        if inside.images >= self.max_images:
            return Obstacle.IMAGES
        if inside.size_bytes + load.size_bytes > self.max_bytes:
            return Obstacle.BYTES
        if inside.frames + load.frames > self.max_frames:
            return Obstacle.FRAMES
        if self._shared and (own := self._callers.get(load.caller)) and self._has_share(own):
            return Obstacle.SHARE
        return None

    def _has_share(self, own: _Inside) -> bool:
        inside = self.inside
        return (
            own.images >= SHARE * (self.max_images - inside.images)
            or own.size_bytes > SHARE * (self.max_bytes - inside.size_bytes)
            or own.frames > SHARE * (self.max_frames - inside.frames)
        )

    def _admit(self, load: LoadT) -> Place[LoadT]:
        amounts = (1, load.size_bytes, load.frames)
        self.inside.add(1, amounts)
        self._callers.setdefault(load.caller, _Inside()).add(1, amounts)
        self._on_enter(load)
        return Place(self, load)

    def _give_back(self, caller: str, amounts: tuple[int, int, int]) -> None:
        self.inside.add(-1, amounts)
        own = self._callers[caller]
        own.add(-1, amounts)
        if not own.images:
            del self._callers[caller]
        self._admit_waiters()

    def _admit_waiters(self) -> None:
        """Let in whoever can come, turn by turn."""
        self._blocked = False
        if not self._waiting:
            return
        while (found := self._next()) is not None:
            self._waiting.serve(found, found.load.caller)
            found.admitted.set_result(self._admit(found.load))

    def _next(self) -> _Waiter[LoadT] | None:
        """The first in turn who can come; nobody where what is short for all keeps out one before."""
        for head in self._waiting.heads():
            if head.admitted.done():  # cancelled: its own `enter` takes it out and calls this again
                return None
            obstacle = self._obstacle(head.load)
            if obstacle is None:
                return head
            if obstacle in GENERAL:
                self._blocked = True
                return None
        return None
