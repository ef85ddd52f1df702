"""The processes of one run, as torchrun starts them: each has a part of the images, and the first speaks and writes.

Every process must come to each of these calls, in the same order, or the others wait for it. One that fails ends, and
the others then end too: their next exchange with it raises PeerLost, and torchrun stops those that are busy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from deepmcat_core.engine import choose_device
from deepmcat_core.errors import InferenceError

Array = TypeVar("Array", bound=npt.NDArray[Any])

PATIENCE = timedelta(hours=12)
"""How long a process waits for another: k-means and the writing of a checkpoint are the first one's alone."""


TYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32), np.dtype(np.int64))
BLOCK = 65_536  # rows that travel at once
HEADER = 4  # type, number of dimensions, and at most two of them


class PeerLost(InferenceError):
    """Another process of this run ended or does not answer."""

    def __init__(self) -> None:
        """With the one sentence that there is to say."""
        super().__init__("another process of this run ended or does not answer; its own message says why")


@dataclass(frozen=True, slots=True)
class World:
    """One process among those of a run. rank: 0 … size − 1."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The part of `n` things that is this process's: parts are in order, and equal but for one thing."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def span(self, n: int) -> tuple[int, int]:
        """Where this process's `n` rows begin among those of all, and how many all are."""
        lengths = self._lengths(n)
        return sum(lengths[: self.rank]), sum(lengths)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in the place of `tensor`."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: Array) -> Array:
        """The rows (n_i, …) of all processes, in the order of their ranks, on every one."""
        if self.size == 1:
            return rows
        lengths = self._lengths(len(rows))
        padded = _padded(rows, max(lengths))
        parts = [torch.empty_like(padded) for _ in lengths]
        with _peers():
            dist.all_gather(parts, padded)
        return _joined(parts, lengths)  # type: ignore[return-value]

    def collect(self, rows: Array) -> Array | None:
        """As gather, but on the first process alone: the others need no room for them, and get None."""
        if self.size == 1:
            return rows
        lengths = self._lengths(len(rows))
        padded = _padded(rows, max(lengths))
        parts = [torch.empty_like(padded) for _ in lengths] if self.first else None
        with _peers():
            dist.gather(padded, parts)
        return _joined(parts, lengths) if parts is not None else None  # type: ignore[return-value]

    def tell(self, value: Array | None) -> Array:
        """What the first process says, on every one. The others give None."""
        if self.size > 1:
            header = torch.tensor(_header(value) if value is not None else [0] * HEADER)
            with _peers():
                dist.broadcast(header, 0)
                said = torch.from_numpy(np.array(value) if value is not None else _room(header.tolist()))
                dist.broadcast(said, 0)
            value = said.numpy()  # type: ignore[assignment]
        assert value is not None
        return value

    def share(self, out: npt.NDArray[Any]) -> None:
        """Fill in `out` (N, …), where each process has written its part, the parts of the others."""
        for rank in range(self.size if self.size > 1 else 0):
            part = World(rank, self.size).part(len(out))
            for start in range(part.start, part.stop, BLOCK):
                with _peers():
                    dist.broadcast(torch.from_numpy(out[start : min(start + BLOCK, part.stop)]), rank)

    def within(self, chosen: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
        """Those of the rows `chosen` (ascending) of all that are among this process's `n`, counted from its first."""
        start, _ = self.span(n)
        return chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, start + n)] - start

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.sum(torch.zeros(1))

    def decide(self, choice: bool) -> bool:
        """The first process's choice, on every one."""
        return bool(self.tell(np.array([choice], dtype=np.int64))[0])

    def sum_all(self, tensors: Iterable[torch.Tensor]) -> None:
        """As sum, of many tensors of one type in one exchange: gradients, say."""
        if self.size == 1:
            return
        given = list(tensors)
        summed = self.sum(torch.cat([tensor.reshape(-1) for tensor in given]))
        for tensor, values in zip(given, torch.split(summed, [tensor.numel() for tensor in given]), strict=True):
            tensor.copy_(values.view_as(tensor))

    def _lengths(self, n: int) -> list[int]:
        if self.size == 1:
            return [n]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _peers():
            dist.all_gather(lengths, torch.tensor([n]))
        return [int(length) for length in lengths]


ALONE = World()


def own_device(device: str) -> str:
    """As choose_device, but under torchrun each process of a machine has a GPU of its own. Raises ConfigError."""
    chosen = choose_device(device)
    if chosen == "cpu" or not _started_by_torchrun():
        return chosen
    return choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def _started_by_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun's environment describes: ALONE where it did not start this process.

    device: "cpu" or "cuda[:N]", where gradients are exchanged with nccl. Everything else goes over gloo.
    Raises PeerLost where the others are not found.
    """
    if not _started_by_torchrun():
        yield ALONE
        return
    with _peers():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    yield World(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone


def leave() -> NoReturn:
    """End this process, which has done its part, without taking the interpreter apart.

    Threads of the backend may not be done with it yet: then, once in some hundred runs on a busy machine, the process
    aborts at its very end ("terminate called without an active exception"), and torchrun ends the others for it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _peers() -> Iterator[None]:
    """Backends say that a connection is lost by a RuntimeError with addresses in it."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost from error


def _padded(rows: npt.NDArray[Any], length: int) -> torch.Tensor:
    padded = np.zeros((length, *rows.shape[1:]), dtype=rows.dtype)
    padded[: len(rows)] = rows
    return torch.from_numpy(padded)


def _joined(parts: list[torch.Tensor], lengths: list[int]) -> npt.NDArray[Any]:
    return np.concatenate([part[:length].numpy() for part, length in zip(parts, lengths, strict=True)])


def _header(value: npt.NDArray[Any]) -> list[int]:
    return [TYPES.index(value.dtype), value.ndim, *value.shape, *[0] * (HEADER - 2 - value.ndim)]


def _room(header: list[int]) -> npt.NDArray[Any]:
    kind, dimensions, *shape = header
    return np.empty(shape[:dimensions], dtype=TYPES[kind])
