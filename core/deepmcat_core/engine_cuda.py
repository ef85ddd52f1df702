"""The encoder on CUDA as graphs: one for each padded batch size, recorded when the engine is warmed.

    images ─pinned buffer─► copy stream ─► staged ─► compute stream: graph of the bucket, search ─► pinned result

A graph launches a network's hundreds of kernels at once, which is most of the time of a small batch. Two slots take
turns, so that one part of a large batch is copied while the part before it is computed.

A graph is used only after its answers were compared with those of the plain path on the spot. One that fails later is
not used again, and its batches take the plain path; where one cannot be recorded, or memory is short, all are given up:
they are a matter of speed, and never of an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from deepmcat_core import logs
from deepmcat_core.engine import Floats, Images, batches

Run = Callable[[torch.Tensor], torch.Tensor]
"""(B, 1, S, S) uint8 → (B, D) float32, both on the device."""

LOG = logs.logger("core.engine")

SLOTS = 2
SAME_COSINE = 0.9999
"""Between a graph's embedding and the plain path's: libraries may choose another kernel, and round otherwise."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Buffers of one batch on its way: `images` and `result` pinned, `staged` on the device; and what to wait for."""

    images: torch.Tensor  # (largest, 1, S, S) uint8
    staged: torch.Tensor
    result: torch.Tensor  # (largest, W) float32
    copied: Any
    done: Any


class Device(Protocol):
    """What of a device these graphs need; one that is none will do for a test."""

    def slot(self, largest: int, size: int, width: int) -> Slot:
        """Buffers for `largest` images of size × size, and as many rows of so many numbers."""

    def record(self, run: Run, rows: int, size: int) -> Run:
        """`run` for batches of exactly `rows`, recorded. Its result is overwritten by the next call of any."""

    def start(self, slot: Slot, run: Run, rows: int) -> None:
        """Begin with the first `rows` of the slot's images; returns before they are done."""

    def finish(self, slot: Slot) -> None:
        """Wait until the slot's result is there."""


class Cuda:
    """A CUDA device. Graphs share their memory: they never run at once, and a result is copied before the next."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def slot(self, largest: int, size: int, width: int) -> Slot:
        """Pinned and device buffers."""
        shape = (largest, 1, size, size)
        staged = torch.empty(shape, dtype=torch.uint8, device=self._device)
        self._copies.wait_stream(torch.cuda.current_stream(self._device))  # on which that memory was in use before
        return Slot(
            images=torch.zeros(shape, dtype=torch.uint8, pin_memory=True),
            staged=staged,
            result=torch.zeros((largest, width), dtype=torch.float32, pin_memory=True),
            copied=torch.cuda.Event(),  # type: ignore[no-untyped-call]
            done=torch.cuda.Event(),  # type: ignore[no-untyped-call]
        )

    def record(self, run: Run, rows: int, size: int) -> Run:
        """A CUDA graph. Other threads may use the device meanwhile: an artifact is warmed beside one that serves."""
        images = torch.zeros((rows, 1, size, size), dtype=torch.uint8, device=self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._aside):
                run(images)  # what libraries set up at first must not be recorded
                with torch.cuda.graph(graph, pool=self._pool, stream=self._aside, capture_error_mode="thread_local"):
                    embeddings = run(images)

        def replay(batch: torch.Tensor) -> torch.Tensor:
            images.copy_(batch)
            graph.replay()
            return embeddings

        return replay

    def start(self, slot: Slot, run: Run, rows: int) -> None:
        """Copy on the one stream, compute on the other, which waits for the copy."""
        with torch.cuda.device(self._device):
            with torch.cuda.stream(self._copies):
                slot.staged[:rows].copy_(slot.images[:rows], non_blocking=True)
                slot.copied.record()
            slot.copied.wait()
            slot.result[:rows].copy_(run(slot.staged[:rows]), non_blocking=True)
            slot.done.record()

    def finish(self, slot: Slot) -> None:
        """Wait for the result's copy, behind which nothing of the slot is in use."""
        slot.done.synchronize()


class Graphs:
    """Batches through recorded graphs. Not for several threads at once, as an engine is not."""

    def __init__(self, device: Device, run: Run, *, size: int, dim: int, largest: int) -> None:
        """largest: the most images at once; more are taken in parts."""
        self._device, self._run, self._size, self._dim, self._largest = device, run, size, dim, largest
        self._width = dim
        self._then: Run = _unchanged
        self._recorded: dict[int, Run] = {}
        self._slots: list[Slot] = []
        self._given_up = False

    @property
    def buckets(self) -> tuple[int, ...]:
        """The padded batch sizes that have a graph, ascending."""
        return tuple(sorted(self._recorded))

    def follow_with(self, then: Run, width: int) -> None:
        """Run this on a graph's embeddings from now on, before they leave the device: (B, D) → (B, width).

        Not recorded: what searches may be a library that cannot be.
        """
        self._then, self._width = then, width
        self._slots.clear()

    def record(self, count: int, plain: Callable[[Images], Floats]) -> None:
        """Have a graph for batches of `count`, proven against `plain`. Where that fails: say so, and have none."""
        rows = bucket(count, self._largest)
        if self._given_up or rows in self._recorded:
            return
        try:
            self._recorded[rows] = self._device.record(self._run, rows, self._size)
            noise = np.random.default_rng(rows).integers(0, 256, (rows, 1, self._size, self._size), dtype=np.uint8)
            same = _same(self.embed(noise)[:, : self._dim], plain(noise)[:, : self._dim])
        except RuntimeError as error:  # torch's own, out of memory among them
            self._give_up(error)
            return
        if not same:
            del self._recorded[rows]
            logs.event(LOG, logging.WARNING, "CUDA graph differs and is not used", batch_size=rows)

    def takes(self, images: Images) -> bool:
        """Whether there are graphs for all parts of this batch."""
        if len(images) == 0 or images.shape[-1] != self._size:
            return False
        return self._rows(images) <= self._recorded.keys()

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8 that `takes` says yes to → (B, W) float32. Raises RuntimeError, as torch does."""
        found = np.empty((len(images), self._width), dtype=np.float32)
        self._slots = self._slots or [self._device.slot(self._largest, self._size, self._width) for _ in range(SLOTS)]
        under_way: list[tuple[Slot, int, int]] = []
        for number, start in enumerate(range(0, len(images), self._largest)):
            if len(under_way) == SLOTS:
                self._collect(*under_way.pop(0), found)
            part = images[start : start + self._largest]
            rows, slot = bucket(len(part), self._largest), self._slots[number % SLOTS]
            slot.images.numpy()[: len(part)] = part  # what lies in the rows behind is computed and left
            self._device.start(slot, self._followed(self._recorded[rows]), rows)
            under_way.append((slot, start, len(part)))
        for each in under_way:
            self._collect(*each, found)
        return found

    def failed(self, images: Images, error: RuntimeError) -> None:
        """Go on without the graphs that this batch took; without any where memory is short, which they hold."""
        if isinstance(error, torch.OutOfMemoryError):
            self._give_up(error)
            return
        for rows in sorted(self._rows(images)):
            name = "CUDA graph failed and is not used"
            logs.event(LOG, logging.WARNING, name, batch_size=rows, error_type=type(error).__name__)
            del self._recorded[rows]
        self._slots.clear()  # some may be under way

    def _give_up(self, error: RuntimeError) -> None:
        """Go on without graphs, and free what they hold."""
        logs.event(LOG, logging.WARNING, "CUDA graphs given up", error_type=type(error).__name__)
        self._given_up = True
        self._recorded.clear()
        self._slots.clear()

    def _rows(self, images: Images) -> set[int]:
        """The buckets of all parts of a batch."""
        return {bucket(len(part), self._largest) for part in batches(images, self._largest)}

    def _followed(self, recorded: Run) -> Run:
        return lambda images: self._then(recorded(images))

    def _collect(self, slot: Slot, start: int, count: int, found: Floats) -> None:
        self._device.finish(slot)
        found[start : start + count] = slot.result.numpy()[:count]


def _unchanged(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings


def bucket(count: int, largest: int) -> int:
    """The rows that a batch is padded to: the next power of two, so that shapes are few and each of them is warm."""
    return min(1 << (count - 1).bit_length(), largest)


def _same(given: Floats, expected: Floats) -> bool:
    """Whether all pairs of unit vectors agree; NaN never does."""
    return bool((np.einsum("bd,bd->b", given, expected) >= SAME_COSINE).all())
