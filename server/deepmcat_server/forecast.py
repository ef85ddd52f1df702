"""How long an image that came now would wait and run: asked before it is let in, and compared with what it then took.

    wait for a worker ─► decoding ─► what is ahead in batches ─► its own batch

The queues say what is ahead in fair order, the decoder and the batcher how long theirs took. What other callers will
send meanwhile may be served before it, as far as fairness lets it: it is counted at the rate of the last seconds. What
the model does not know (the rest of the path, a busy machine) is in its errors, and the margin is made of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from deepmcat_server.batcher import Batcher
from deepmcat_server.decoding import Decoder
from deepmcat_server.room import Load
from deepmcat_server.timing import Decaying, Rate

MEMORY_S = 2.0
"""Over what time rates of arrival are taken."""

FORGOTTEN_PER_S = 0.05
"""The rate below which a caller is forgotten: it sent nothing for some seconds."""

KEEP = 0.95
KEEP_ERRORS = 0.99
DEVIATIONS = 4.0
"""How many mean deviations of the error a margin has. Three hold 99 % of a normal distribution; errors come in runs."""

ENOUGH = 80.0
"""How many errors have to be known."""

ROUNDS = 4
"""What comes meanwhile makes the wait longer, in which more comes; the sum converges fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of an image. margin_s: by how much it may take longer."""

    wait_s: float
    run_s: float
    margin_s: float

    @property
    def total_s(self) -> float:
        """From now to its answer."""
        return self.wait_s + self.run_s


class Forecaster:
    """Foretells for one batcher and the decoder before it. Used on the event loop only. clock: monotonic seconds."""

    def __init__(self, decoder: Decoder, batcher: Batcher, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._decoder = decoder
        self._batcher = batcher
        self._clock = clock
        self._rates: dict[str, Rate] = {}  # of images, by caller
        self._coming: set[Load] = set()  # let in, and not yet at the decoder
        self._coming_of: Counter[str] = Counter()  # the same by caller
        self._frames = Decaying(KEEP)  # of an image
        self._cost = Decaying(KEEP)  # of decoding an image
        self._errors = Decaying(KEEP_ERRORS)

    def forecast(self, caller: str, cost: float, frames: int) -> Forecast | None:
        """For an image of at most so many frames; None as long as no batch has run. cost: of decoding it."""
        if self._batcher.batch_s(1) is None:
            return None
        frames_expected = min(self._frames.mean or 1.0, frames)
        rates = self._current_rates()
        decode_wait_s = self._decode_wait_s(caller, rates) if cost else 0.0
        decode_s = self._decoder.seconds(cost)
        batch_wait_s, batch_s = self._batch(caller, frames_expected, rates)
        wait_s = max(decode_wait_s, batch_wait_s - decode_s)
        run_s = decode_s + batch_s
        # Of a server that is slow no more, large errors are remembered: none is larger than what it is an error of.
        return Forecast(wait_s=wait_s, run_s=run_s, margin_s=min(self.margin_s, wait_s + run_s))

    @property
    def margin_s(self) -> float:
        """What forecasts are off by: their mean error, where they are too short, and some deviations.

        Two batches at first, as long as few errors are known.
        """
        known = min(self._errors.weight / ENOUGH, 1.0)
        learnt = (self._errors.mean or 0.0) + DEVIATIONS * self._errors.deviation
        return max(0.0, learnt, 2 * (1 - known) * self._seconds(self._batcher.full_batch))

    @property
    def has_little(self) -> bool:
        """Whether no more waits than one batch: what is let in while nothing is known."""
        return max(self._batcher.depth, self._decoder.depth + len(self._coming)) < self._batcher.max_batch

    @property
    def busy_s(self) -> float:
        """The wait that keeps the device and the workers busy whatever it is: two batches, two images a worker."""
        return 2 * max(self._seconds(self._batcher.full_batch), self._decoder.seconds(self._cost_expected))

    def image_s(self, frames: int) -> float:
        """By how much an image more puts off all behind it: in the slower of the two stages."""
        batch = self._batcher.full_batch
        decode_s = self._decoder.seconds(self._cost_expected) / self._decoder.workers
        return max(self._seconds(batch) / batch * min(self._frames.mean or 1.0, frames), decode_s)

    def coming(self, load: Load) -> None:
        """One was let in, and is on its way to the decoder."""
        self._coming.add(load)
        self._coming_of[load.caller] += 1

    def arrived(self, load: Load) -> None:
        """It is there, or will not come."""
        if load in self._coming:
            self._coming.remove(load)
            self._coming_of[load.caller] -= 1
            if not self._coming_of[load.caller]:
                del self._coming_of[load.caller]

    def begun(self, caller: str, cost: float) -> None:
        """An image was let in. cost: of decoding it."""
        self._rates.setdefault(caller, Rate(MEMORY_S)).add(1, self._clock())
        self._cost.add(cost)

    def decoded(self, frames: int) -> None:
        """One has so many frames."""
        self._frames.add(frames)

    def ended(self, forecast: Forecast, took_s: float) -> None:
        """One took so long, or longer."""
        self._errors.add(took_s - forecast.total_s)

    @property
    def _cost_expected(self) -> float:
        """Of decoding the next image."""
        mean = self._cost.mean
        return 1.0 if mean is None else mean

    def _decode_wait_s(self, caller: str, rates: dict[str, float]) -> float:
        wait_s, cost = 0.0, self._cost_expected
        for _ in range(ROUNDS if _others(caller, rates) else 1):
            coming = {other: rate * wait_s * cost for other, rate in rates.items() if other != caller}
            for other, images in self._coming_of.items():
                coming[other] = coming.get(other, 0.0) + cost * images
            wait_s = self._decoder.wait_s(caller, coming)
        return wait_s

    def _batch(self, caller: str, frames: float, rates: dict[str, float]) -> tuple[float, float]:
        """How long until the image's batch begins, and how long that takes."""
        busy_s, largest, each = self._batcher.busy_s(), self._batcher.full_batch, self._frames.mean or 1.0
        decoding = dict(self._coming_of)
        for other, images in self._decoder.images().items():
            decoding[other] = decoding.get(other, 0) + images
        wait_s, rest = 0.0, 0.0
        for _ in range(ROUNDS if _others(caller, rates) else 1):
            coming = {other: each * rate * wait_s for other, rate in rates.items() if other != caller}
            for other, images in decoding.items():
                coming[other] = coming.get(other, 0.0) + each * images
            whole, rest = divmod(self._batcher.ahead(caller, coming), largest)
            if rest and rest + frames > largest:
                whole, rest = whole + 1, 0.0
            wait_s = busy_s + whole * self._seconds(largest)
        together = rest + frames + each * sum(rates.values()) * wait_s  # those that come meanwhile join it
        return wait_s, self._seconds(max(frames, min(largest, together)))

    def _current_rates(self) -> dict[str, float]:
        now = self._clock()
        rates = {caller: rate.per_s(now) for caller, rate in self._rates.items()}
        for caller, rate in rates.items():
            if rate < FORGOTTEN_PER_S:
                del self._rates[caller]
        return rates

    def _seconds(self, frames: float) -> float:
        return self._batcher.batch_s(frames) or 0.0


def _others(caller: str, rates: dict[str, float]) -> bool:
    """Whether anybody else sends: what comes meanwhile is of them alone."""
    return len(rates) > (caller in rates)
