"""Permits at the door: how many images, and how many bytes of them, are inside the server at once.

Waiting happens inside (decoding, batching), refusing only here. A permit is held from an image's arrival to its
answer, so the memory that callers can make the server use is bounded, whatever is slow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from deepmcat_server.errors import ServerBusy


class Permit:
    """Room for one image. Given back once, by `release` or by leaving it as a context."""

    def __init__(self, admission: Admission, size_bytes: int) -> None:
        self._admission: Admission | None = admission
        self._size_bytes = size_bytes

    def release(self) -> None:
        """Give the room back; a second time does nothing."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._give_back(self._size_bytes)

    def __enter__(self) -> None:
        """Nothing: the permit is held already."""

    def __exit__(self, *exc_info: object) -> None:
        """Give the room back."""
        self.release()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    size_bytes: int
    admitted: asyncio.Future[Permit]


class Admission:
    """Room for `max_images` images of together `max_bytes`; first come, first admitted.

    An image larger than `max_bytes` gets in when it is alone. Used on the event loop only.
    """

    def __init__(self, *, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images = 0
        self._bytes = 0
        self._waiters: deque[_Waiter] = deque()

    @property
    def images(self) -> int:
        """The number of images inside."""
        return self._images

    def enter_now(self, size_bytes: int) -> Permit:
        """Room for an image of `size_bytes` at once. Raises ServerBusy."""
        if self._waiters or not self._fits(size_bytes):
            raise ServerBusy(f"the server {self._why(size_bytes)}; send the image again later")
        return self._admit(size_bytes)

    async def enter(self, size_bytes: int) -> Permit:
        """Room for an image of `size_bytes`, as soon as there is some."""
        if not self._waiters and self._fits(size_bytes):
            return self._admit(size_bytes)
        waiter = _Waiter(size_bytes, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                waiter.admitted.result().release()  # admitted and cancelled in the same turn of the loop
            else:
                self._waiters.remove(waiter)
                self._admit_waiters()  # the one behind may fit where this one did not
            raise

    def _fits(self, size_bytes: int) -> bool:
        return self._images == 0 or (self._images < self._max_images and self._bytes + size_bytes <= self._max_bytes)

    def _why(self, size_bytes: int) -> str:
        """Which bound keeps an image out."""
        if self._images >= self._max_images:
            return f"has {self._images} images inside and takes {self._max_images} (max_queue)"
        if self._fits(size_bytes):
            return f"has {len(self._waiters)} images of streams waiting to get in before this one"
        return f"has {self._bytes} bytes of images inside and takes {self._max_bytes} (max_pending_bytes)"

    def _admit(self, size_bytes: int) -> Permit:
        self._images += 1
        self._bytes += size_bytes
        return Permit(self, size_bytes)

    def _give_back(self, size_bytes: int) -> None:
        self._images -= 1
        self._bytes -= size_bytes
        self._admit_waiters()

    def _admit_waiters(self) -> None:
        # A waiter that is done while it queues was cancelled: its own `enter` takes it out and calls this again.
        while (head := next(iter(self._waiters), None)) and not head.admitted.done() and self._fits(head.size_bytes):
            self._waiters.popleft()
            head.admitted.set_result(self._admit(head.size_bytes))
