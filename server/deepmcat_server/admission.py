"""Who gets in: an image for which there is room, and that can be answered in its time.

A permit is held from an image's arrival to its answer, so the memory that callers can make the server use is bounded,
whatever is slow. A call is refused at once where a forecast says that it would be late, or wait longer than the budget,
and told when to come back. An image of a stream waits instead: reading no further is the flow control.

Where nothing is inside, an image is let in whatever the forecast says: it is how a server that was slow finds out that
it is not any more.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deepmcat_server.decoding import decode_cost
from deepmcat_server.errors import ServerBusy
from deepmcat_server.forecast import Forecast, Forecaster
from deepmcat_server.measured import LEEWAY_S
from deepmcat_server.room import Load, Obstacle, Place, Room
from deepmcat_server.timing import Rate

REFUSALS = frozenset({*Obstacle} - {Obstacle.TIME} | {"budget", "deadline", "unknown"})
"""Why images are refused: a closed set, fit for a label."""

UNKNOWN_RETRY_S = 0.5
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.01, 30.0
REFUSED_MEMORY_S = 1.0

REPLY_S = 0.01
"""For the way back to the caller, whose deadline is there and not here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival(Load):
    """An image at the door. deadline: by the clock, of its answer. forecaster: of the batcher that it is for.

    whole: whether all of it is there, so that it is work as soon as it is let in. decodes: whether a worker reads it.
    """

    deadline: float = math.inf
    forecaster: Forecaster | None = None
    whole: bool = True
    decodes: bool = True

    @property
    def decode_cost(self) -> float:
        """What decoding it counts."""
        return decode_cost(self.size_bytes) if self.decodes else 0.0


class Permit:
    """An image inside: whose it is, until when its answer is needed, and its room. Given back by `release`."""

    def __init__(self, place: Place[Arrival], forecast: Forecast | None, clock: Callable[[], float]) -> None:
        self._place = place
        self._forecast = forecast
        self._clock = clock
        self._since = clock()
        self._held = True

    @property
    def caller(self) -> str:
        """Whose image it is."""
        return self._place.load.caller

    @property
    def deadline(self) -> float:
        """Of the answer, by the clock."""
        return self._place.load.deadline

    def begin(self) -> None:
        """All of the image is there: from now on it is the server's time."""
        arrival = self._place.load
        if arrival.forecaster is not None:
            arrival.forecaster.arrived(arrival)
            if not arrival.whole:
                self._since, self._forecast = self._clock(), _forecast(arrival)
            arrival.forecaster.begun(arrival.caller, arrival.decode_cost)

    def decoded(self, frames: int) -> None:
        """The image has so many frames: give back the room of those that it could have had."""
        self._place.shrink(frames)
        if (forecaster := self._place.load.forecaster) is not None:
            forecaster.decoded(frames)

    def answered(self) -> float | None:
        """The answer is there: by how much it took longer than foretold."""
        return self._learn()

    def release(self) -> None:
        """Give the room back; a second time does nothing."""
        if self._held:
            self._held = False
            if self._clock() + LEEWAY_S >= self.deadline:
                self._learn()
            self._place.release()

    def __enter__(self) -> None:
        """Nothing: the permit is held already."""

    def __exit__(self, *exc_info: object) -> None:
        """Give the room back."""
        self.release()

    def _learn(self) -> float | None:
        forecast, self._forecast = self._forecast, None
        forecaster = self._place.load.forecaster
        if forecast is None or forecaster is None:
            return None
        took_s = self._clock() - self._since
        forecaster.ended(forecast, took_s)
        return took_s - forecast.total_s


class Admission:
    """Room for `max_images` images of together `max_bytes` and `max_frames`, for what can be answered in time.

    budget_s: the longest that a call may have to wait inside; images of streams are read while it is at most half of
    that. Never less than keeps the device busy. clock: monotonic seconds, the event loop's.
    """

    def __init__(
        self,
        *,
        max_images: int,
        max_bytes: int,
        max_frames: float = math.inf,
        budget_s: float = math.inf,
        on_refusal: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._room: Room[Arrival] = Room(
            max_images=max_images,
            max_bytes=max_bytes,
            max_frames=max_frames,
            shared=True,
            in_time=self._in_time,
            on_enter=_entered,
            on_leave=_left,
        )
        self._budget_s = budget_s
        self._on_refusal = on_refusal
        self._clock = clock
        self._rng = rng or random.Random()
        self._refused = Rate(REFUSED_MEMORY_S)
        self._foretold: Forecast | None = None

    @property
    def images(self) -> int:
        """The number of images inside."""
        return self._room.inside.images

    @property
    def size_bytes(self) -> int:
        """Of all images inside."""
        return self._room.inside.size_bytes

    @property
    def frames(self) -> int:
        """Of all images inside, at most."""
        return self._room.inside.frames

    def enter_now(self, arrival: Arrival) -> Permit:
        """Room for an image at once. Raises ServerBusy."""
        forecast = _forecast(arrival)
        self._check_time(arrival, forecast, self._budget_s)
        place = self._room.try_enter(arrival)
        if isinstance(place, Obstacle):
            raise self._full(place, arrival, forecast)
        return Permit(place, forecast, self._clock)

    def check_unread(self, arrivals: Iterable[Arrival]) -> None:
        """Raises ServerBusy where none of these could enter in time: one image, on each artifact it may be for.

        The budget is not asked: an image that takes longer to decode waits less for its batch than these.
        """
        if self.images == 0:
            return
        arrival, forecast = min(((each, _forecast(each)) for each in arrivals), key=lambda each: _needed_s(each[1]))
        self._check_deadline(arrival, forecast)
        if obstacle := self._room.keeps_out(arrival):
            raise self._full(obstacle, arrival, forecast)

    @property
    def has_refused(self) -> bool:
        """Whether an image was refused within REFUSED_MEMORY_S, in which one counts for 1/e in the end."""
        return self._refused.per_s(self._clock()) * REFUSED_MEMORY_S >= 1 / math.e

    async def enter(self, arrival: Arrival) -> Permit:
        """Room for an image, as soon as there is some. Raises ServerBusy where its answer would then be too late."""
        place = await self._room.enter(arrival)
        return self._permit(place, _forecast(arrival))

    def enter_in_turn(self, arrival: Arrival) -> Permit | None:
        """The same where it need not wait; None where it must, by `enter`."""
        self._note(None)
        place = self._room.enter_in_turn(arrival)
        return None if place is None else self._permit(place, self._foretold or _forecast(arrival))

    def retry_s(self, arrival: Arrival, over_s: float) -> float:
        """When to come back, for one for whom there is room in `over_s`: after those that were refused just before it.

        Spread at random, so that callers who were refused together do not come back together.
        """
        now = self._clock()
        each_s = arrival.forecaster.image_s(arrival.frames) if arrival.forecaster else 0.0
        wait_s = over_s + self._refused.per_s(now) * REFUSED_MEMORY_S * each_s
        self._refused.add(1, now)
        return min(max(wait_s * self._rng.uniform(1.0, 1.5), SHORTEST_RETRY_S), LONGEST_RETRY_S)

    def _permit(self, place: Place[Arrival], forecast: Forecast | None) -> Permit:
        """For an image of a stream that has a place. Raises ServerBusy where its answer would be too late."""
        try:
            if self.images > 1:
                self._check_deadline(place.load, forecast)
        except ServerBusy:
            place.release()
            raise
        return Permit(place, forecast, self._clock)

    def _in_time(self, arrival: Arrival) -> bool:
        """Whether an image of a stream may come now."""
        if (forecaster := arrival.forecaster) is None:
            return True
        forecast = _forecast(arrival)
        self._note(forecast)
        if forecast is None:
            return forecaster.has_little
        return forecast.wait_s <= max(self._budget_s / 2, forecaster.busy_s)

    def _note(self, forecast: Forecast | None) -> None:
        """What the image of a stream was told that has just been asked about: it need not be asked twice."""
        self._foretold = forecast

    def _check_time(self, arrival: Arrival, forecast: Forecast | None, budget_s: float) -> None:
        """Raises ServerBusy where a call would wait too long."""
        if self.images == 0 or (forecaster := arrival.forecaster) is None:
            return
        if forecast is None:
            if not forecaster.has_little:
                raise self._busy("unknown", "the server has just begun and is busy", arrival, UNKNOWN_RETRY_S)
            return
        budget_s = max(budget_s, forecaster.busy_s)
        if forecast.wait_s > budget_s:
            why = (
                f"the image would wait about {forecast.wait_s:.3g} s, and {budget_s:.3g} s are allowed (queue_budget_s)"
            )
            raise self._busy("budget", why, arrival, forecast.wait_s - budget_s)
        self._check_deadline(arrival, forecast)

    def _check_deadline(self, arrival: Arrival, forecast: Forecast | None) -> None:
        if forecast is None:
            return
        left_s = arrival.deadline - self._clock()
        needed_s = _needed_s(forecast)
        if needed_s > left_s:
            why = f"the answer would take about {needed_s:.3g} s, and {max(left_s, 0.0):.3g} s are left for it"
            raise self._busy("deadline", why, arrival, min(needed_s - left_s, needed_s))

    def _full(self, obstacle: Obstacle, arrival: Arrival, forecast: Forecast | None) -> ServerBusy:
        over_s = forecast.wait_s / 2 if forecast else UNKNOWN_RETRY_S
        return self._busy(obstacle, f"the server {self._why(obstacle)}", arrival, over_s)

    def _busy(self, reason: str, why: str, arrival: Arrival, over_s: float) -> ServerBusy:
        self._on_refusal(reason)
        return ServerBusy(f"{why}; send the image again later", retry_s=self.retry_s(arrival, over_s))

    def _why(self, obstacle: Obstacle) -> str:
        """Which bound keeps an image out."""
        inside, room = self._room.inside, self._room
        match obstacle:
            case Obstacle.IMAGES:
                return f"has {inside.images} images inside and takes {room.max_images} (max_queue)"
            case Obstacle.BYTES:
                return f"has {inside.size_bytes} bytes of images inside and takes {room.max_bytes} (max_pending_bytes)"
            case Obstacle.FRAMES:
                return f"has {inside.frames} frames inside and takes {room.max_frames} (max_pending_frames)"
            case Obstacle.SHARE:
                return "has as much of this caller inside as it takes of one while others may come"
            case _:
                return f"has {len(room.waiting)} images of streams waiting to get in before this one"


def _entered(arrival: Arrival) -> None:
    """It is counted as work from now on, though it begins only in a later turn of the loop."""
    if arrival.forecaster is not None and arrival.whole:
        arrival.forecaster.coming(arrival)


def _left(arrival: Arrival) -> None:
    if arrival.forecaster is not None:
        arrival.forecaster.arrived(arrival)


def _needed_s(forecast: Forecast | None) -> float:
    """From now until the caller has its answer; 0 where nothing is known."""
    return forecast.total_s + forecast.margin_s + REPLY_S if forecast else 0.0


def _forecast(arrival: Arrival) -> Forecast | None:
    if arrival.forecaster is None:
        return None
    return arrival.forecaster.forecast(arrival.caller, arrival.decode_cost, arrival.frames)
