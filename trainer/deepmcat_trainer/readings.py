"""Readings of a stream of items: decoded in parallel, given in the order of the stream.

    items ─batches─► DecodePool ─► readings, in order

Small images would spend more time on the way to a worker than in it, so they travel in batches. A bounded number of
batches and of bytes is on the way at any time, however long the stream is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future

from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.errors import ConfigError, ImageError
from deepmcat_core.planes import ReadOptions
from deepmcat_trainer.reading import Reading, read_images
from deepmcat_trainer.sources import SourceItem

BATCH_ITEMS, BATCH_BYTES = 16, 4 * 2**20
BATCHES_PER_WORKER = 4  # how far the workers may run ahead of the slowest batch
MAX_BYTES = 256 * 2**20  # of archive members that this process had to read, on the way to workers

_Outcome = tuple[SourceItem, Reading | str]
_Submitted = tuple[list[SourceItem], Future[list[Reading | str]]]


def read_in_order(
    pool: DecodePool, items: Iterable[SourceItem], options: ReadOptions, *, workers: int
) -> Iterator[_Outcome]:
    """Each item with its reading or the reason code of its failure. Raises ConfigError where no worker can start."""
    window: deque[_Submitted] = deque()
    waiting = 0  # bytes in the window
    for batch in _batches(items):
        window.append((batch, _submit(pool, batch, options)))
        waiting += _bytes(batch)
        while len(window) > BATCHES_PER_WORKER * workers or (waiting > MAX_BYTES and len(window) > 1):
            waiting -= _bytes(window[0][0])
            yield from _outcomes(pool, window.popleft(), options)
    while window:
        yield from _outcomes(pool, window.popleft(), options)


def _batches(items: Iterable[SourceItem]) -> Iterator[list[SourceItem]]:
    batch: list[SourceItem] = []
    for item in items:
        batch.append(item)
        if len(batch) >= BATCH_ITEMS or _bytes(batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _bytes(batch: Iterable[SourceItem]) -> int:
    return sum(item.location.held for item in batch)


def _submit(pool: DecodePool, batch: list[SourceItem], options: ReadOptions) -> Future[list[Reading | str]]:
    return pool.submit_call(read_images, [item.location for item in batch], options)


def _outcomes(pool: DecodePool, submitted: _Submitted, options: ReadOptions) -> Iterator[_Outcome]:
    batch, future = submitted
    try:
        yield from zip(batch, future.result(), strict=True)
    except ImageError as error:  # a worker died of an image of the batch, and again of the same batch
        if len(batch) == 1:
            yield batch[0], error.reason
            return
        for item in batch:
            yield from _outcomes(pool, ([item], _submit(pool, [item], options)), options)
    except BrokenExecutor as error:
        raise ConfigError("no decoding process can start: give fewer --workers, or free memory") from error
