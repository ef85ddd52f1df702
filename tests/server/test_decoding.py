"""Decoding as the event loop sees it: what goes to a worker, and what does not."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import numpy as np
import pytest

from deepmcat_core.frame import ImageSource, RawPlane
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_server.admission import Arrival
from deepmcat_server.batcher import Batcher
from deepmcat_server.decoding import Decoder
from deepmcat_server.forecast import Forecaster

SIZE = 32


class Pool:
    """Reads nothing by itself; keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[ImageSource] = []
        self.futures: list[Future[Planes]] = []

    def submit(self, source: ImageSource, options: ReadOptions) -> Future[Planes]:
        self.given.append(source)
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        """Nothing to close."""


def plane(size: int = SIZE, sample_type: str = "uint8") -> RawPlane:
    samples = np.random.default_rng(5).integers(0, 200, (size, size)).astype(sample_type)
    return RawPlane(rows=size, columns=size, sample_type=sample_type, data=samples.tobytes())


async def test_plane_that_fits_needs_no_worker():
    """A plane of 8 bits in the encoder's size is read at once, to the pixels that a worker would have read."""
    pool, options = Pool(), ReadOptions(preprocessing=Preprocessing(size=SIZE))

    read = await Decoder(pool, workers=1).read(plane(), options)

    assert not pool.given
    np.testing.assert_array_equal(read.planes, read_planes(plane(), options).planes)


@pytest.mark.parametrize(
    ("source", "size"),
    [(plane(SIZE + 1), SIZE), (plane(sample_type="uint16"), SIZE), (plane(512), 512), (b"a file", SIZE)],
    ids=["scaled", "deep", "large", "file"],
)
async def test_all_else_goes_to_a_worker(source, size):
    """What has to be scaled, stretched from more bits or parsed, and what is large, does not hold up the event loop."""
    pool = Pool()
    options = ReadOptions(preprocessing=Preprocessing(size=size))
    reading = asyncio.create_task(Decoder(pool, workers=1).read(source, options))
    await asyncio.sleep(0)

    assert pool.given == [source]
    reading.cancel()


async def test_what_needs_no_worker_does_not_wait_for_one():
    """Where images wait for workers, one that needs none is expected to be answered at once."""
    now, pool, options = 0.0, Pool(), ReadOptions(preprocessing=Preprocessing(size=SIZE))
    decoder = Decoder(pool, workers=1, clock=lambda: now)
    batcher = Batcher(lambda images: np.ones((len(images), 1), np.float32), max_batch=8, clock=lambda: now)
    forecaster = Forecaster(decoder, batcher, clock=lambda: now)
    async with batcher:
        await batcher.embed(np.zeros((1, SIZE, SIZE), np.uint8))
    reads = [asyncio.create_task(decoder.read(b"a file", options)) for _ in range(3)]
    await asyncio.sleep(0)
    now += 1.0  # for the first; the others wait
    pool.futures[0].set_result(read_planes(plane(), options))
    await reads[0]

    of = {
        decodes: forecaster.forecast("", Arrival(size_bytes=6, decodes=decodes).decode_cost, 1)
        for decodes in (True, False)
    }

    assert of[False].total_s == 0
    assert of[True].total_s > 1
    for read in reads:
        read.cancel()
