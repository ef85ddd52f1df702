"""What every caller and every fault is given: the servers, what to send, the books, and whether it is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from .ledger import Ledger
from .oracle import FRAMES, Asked, Oracle
from .replica import Replica
from .specimens import Specimen

LARGE_BYTES = 2**20  # travel in chunks
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as another process has
MESSAGE_S = 120  # what nobody has answered by then hangs


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A run. over: callers finish what they have sent, and end."""

    seed: int
    replicas: Sequence[Replica]
    oracle: Oracle
    ledger: Ledger
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _going: asyncio.Event = field(default_factory=asyncio.Event)

    def rng(self, who: str) -> random.Random:
        """Everybody's own, so that what one sends does not depend on the others' pace."""
        return random.Random(f"{self.seed} {who}")

    def __post_init__(self) -> None:
        """Begin."""
        self._going.set()

    async def rest(self, seconds: float) -> bool:
        """Wait; whether the run goes on."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            await self._going.wait()
        return not self.over.is_set()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Everybody finishes what it is at, and begins nothing."""
        self._going.clear()
        try:
            yield
        finally:
            self._going.set()

    def channel(self, rng: random.Random) -> grpc.aio.Channel:
        """A new connection to a replica that is not down, as a load balancer would choose it."""
        alive = [replica for replica in self.replicas if replica.state == "up"] or list(self.replicas)
        return grpc.aio.insecure_channel(rng.choice(alive).address, options=CHANNEL_OPTIONS)


class Menu:
    """What a caller asks for, one after the other. hostile: the share of images that have no answer."""

    def __init__(self, scene: Scene, rng: random.Random, *, hostile: float = 0.0) -> None:
        kept = scene.oracle.kept
        self._rng = rng
        self._hostile_share = hostile
        self._good = [s for s in kept if scene.oracle.is_good(s)]
        self._hostile = [s for s in kept if not scene.oracle.is_good(s)]
        self._large = [s for s in self._good if s.size_bytes > LARGE_BYTES]
        self._small = [s for s in self._good if s.size_bytes <= LARGE_BYTES]

    def asked(self) -> Asked:
        """The next image."""
        if self._rng.random() < self._hostile_share:
            return self._asked(self._hostile)
        return self._asked(self._large if self._rng.random() < 0.04 else self._small)

    def large(self) -> Asked:
        """A good image that travels in chunks."""
        return self._asked(self._large)

    def file(self) -> Asked:
        """A good image that is a file and fits into a message."""
        return self._asked([s for s in self._small if isinstance(s.source, bytes)])

    def _asked(self, among: Sequence[Specimen]) -> Asked:
        return Asked(
            specimen=self._rng.choice(among),
            frames=self._rng.choice(FRAMES),
            top_k=self._rng.randrange(4),
            want_embedding=self._rng.random() < 0.2,
        )
