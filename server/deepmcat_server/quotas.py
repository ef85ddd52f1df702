"""How much a caller may send: images and bytes a second, by token buckets.

A unary call that is over its quota ends with QUOTA_EXCEEDED, before its request is read where that can be known.
In a stream a quota is flow control like fullness: reading waits until the caller has room again, and only an image
whose time would be over by then is refused. So a client that streams a folder goes at its rate, and retries nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from deepmcat_server.callers import fits
from deepmcat_server.errors import QuotaExceeded

MAX_CALLERS = 10_000
"""Callers that are kept track of. The one that was seen longest ago makes room, and has a full bucket if it returns."""


class Quota(BaseModel):
    """What one caller may send on average. 0: as much as it likes. burst_s: this many seconds' worth at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images_per_s: float = Field(default=0, ge=0, allow_inf_nan=False)
    bytes_per_s: float = Field(default=0, ge=0, allow_inf_nan=False)
    burst_s: float = Field(default=10, ge=0, le=86400)


class Bucket:
    """`rate` tokens a second, at most `burst` of them; full at first.

    What is larger than `burst` is let through when the bucket is full, and leaves a debt: the average holds.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = self._tokens = max(burst, 1.0)
        self._at = now

    def wait_s(self, cost: float, now: float) -> float:
        """After how long `cost` tokens can be had; 0: now."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (min(cost, self._burst) - self._tokens) / self._rate)

    def take(self, cost: float) -> None:
        """Take the tokens, those that are still to come too: the next one waits behind."""
        self._tokens -= cost


class Quotas:
    """The buckets of all callers. overrides: by pattern of a caller's key, the first that fits wins.

    Used on the event loop only. clock: monotonic seconds.
    """

    def __init__(
        self,
        default: Quota,
        overrides: Mapping[str, Quota] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default
        self._overrides = overrides or {}
        self._clock = clock
        self._bounds_nobody = not any(q.images_per_s or q.bytes_per_s for q in (default, *self._overrides.values()))
        self._buckets: OrderedDict[str, tuple[Bucket | None, Bucket | None]] = OrderedDict()

    def check(self, caller: str) -> None:
        """Refuse a call of which nothing has been read, where not even the smallest image has room."""
        self._room(caller, 1, allowed_s=0.0, reserve=False)

    def take(self, caller: str, size_bytes: int) -> None:
        """Take the room of an image, which is there now. Raises QuotaExceeded."""
        self._room(caller, size_bytes, allowed_s=0.0, reserve=True)

    async def wait(self, caller: str, size_bytes: int, deadline: float) -> None:
        """Take the room of an image as soon as it is there. deadline: by the loop's clock. Raises QuotaExceeded."""
        allowed_s = deadline - asyncio.get_running_loop().time()
        if wait_s := self._room(caller, size_bytes, allowed_s=max(allowed_s, 0.0), reserve=True):
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                self._take(caller, -1, -size_bytes)  # it will not be sent
                raise

    def _room(self, caller: str, size_bytes: int, *, allowed_s: float, reserve: bool) -> float:
        """After how long the image has room, which is reserved for it. Raises QuotaExceeded beyond `allowed_s`."""
        if self._bounds_nobody:
            return 0.0
        now = self._clock()
        images, size = self._of(caller, now)
        waits = {
            "images": images.wait_s(1, now) if images else 0.0,
            "bytes": size.wait_s(size_bytes, now) if size else 0.0,
        }
        scarce = max(waits, key=lambda kind: waits[kind])
        if waits[scarce] > allowed_s:
            raise QuotaExceeded(
                f"the quota of {scarce} of this caller is used up; send the image again in "
                f"{math.ceil(waits[scarce] * 1000) / 1000:g} s",
                retry_s=waits[scarce],
            )
        if reserve:
            self._take(caller, 1, size_bytes)
        return waits[scarce]

    def _take(self, caller: str, images: int, size_bytes: int) -> None:
        for bucket, cost in zip(self._of(caller, self._clock()), (images, size_bytes), strict=True):
            if bucket is not None:
                bucket.take(cost)

    def _of(self, caller: str, now: float) -> tuple[Bucket | None, Bucket | None]:
        """The buckets of images and of bytes; None: no bound."""
        if caller in self._buckets:
            self._buckets.move_to_end(caller)
            return self._buckets[caller]
        quota = next((q for pattern, q in self._overrides.items() if fits(pattern, caller)), self._default)
        rates = (quota.images_per_s, quota.bytes_per_s)
        first, second = (Bucket(rate, rate * quota.burst_s, now) if rate else None for rate in rates)
        if first is None and second is None:
            return None, None
        self._buckets[caller] = first, second
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return first, second
