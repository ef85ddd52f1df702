"""One image's way through the server, stage by stage.

source ─decode (worker process)─► Planes ─queue, encode (engine thread)─► embeddings ─assign (thread)─► answer
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from deepmcat_core import logs
from deepmcat_core.assigner import DEFAULT_TOP_K
from deepmcat_core.categorizer import Categorization, Categorizer
from deepmcat_core.engine import Engine
from deepmcat_core.errors import InferenceError
from deepmcat_core.frame import ImageSource
from deepmcat_core.preamble import hides_program
from deepmcat_server.batcher import Batcher, BatchFailed
from deepmcat_server.decoding import Decoder
from deepmcat_server.metrics import Metrics

Floats = npt.NDArray[np.float32]

LOG = logs.logger("server.pipeline")


class Pipeline:
    """Decoder, batcher and categorizer joined. Leaving the context ends the assigning thread."""

    def __init__(self, *, categorizer: Categorizer, decoder: Decoder, batcher: Batcher, metrics: Metrics) -> None:
        self.categorizer = categorizer
        self._decoder = decoder
        self._batcher = batcher
        self._metrics = metrics
        # One thread: a GPU index is used by one thread only, and searching must not hold up the event loop.
        self._assigning = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deepmcat-assign")

    async def categorize(self, source: ImageSource, *, frames: int, top_k: int) -> Categorization:
        """The answer for one image. frames, top_k: 0 for the defaults. Raises ImageError, InferenceError, ServerError.

        Cancelling it takes the image out of whatever it waits for.
        """
        if isinstance(source, bytes) and hides_program(source):  # whatever becomes of the rest
            self._metrics.preamble_executable()
        with self._metrics.stage("decode"):
            planes = await self._decoder.read(source, self.categorizer.read_options(frames))
        try:
            embeddings = await self._batcher.embed(planes.planes)  # (F, D)
        except BatchFailed as error:
            raise InferenceError("the encoder failed on the batch that held this image") from error
        with self._metrics.stage("assign"):
            answer = await asyncio.get_running_loop().run_in_executor(
                self._assigning, self.categorizer.answer, planes, embeddings, top_k or DEFAULT_TOP_K
            )
        self._metrics.answer(answer)
        return answer

    async def __aenter__(self) -> Self:
        """Nothing: the thread starts with the first image."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the assigning thread."""
        self._assigning.shutdown()


def logged_embed(engine: Engine) -> Callable[[npt.NDArray[np.uint8]], Floats]:
    """`engine.embed`, with one log line where it fails: the callers of the batch learn only that it did."""

    def embed(images: npt.NDArray[np.uint8]) -> Floats:
        try:
            return engine.embed(images)
        except Exception:
            logs.event(LOG, logging.ERROR, "batch failed", batch_size=len(images), exc_info=True)
            raise

    return embed


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """The batch sizes to warm up with: powers of two below `max_batch`, and `max_batch`.

    CUDA pads to powers of two, so there no other size up to `max_batch` ever runs. A CPU runs batches as they are: for
    a size that is new, ONNX Runtime has nothing to prepare and torch takes a few milliseconds once, less than padding
    would each time.
    """
    return (*(2**i for i in range((max_batch - 1).bit_length())), max_batch)


def batches_beside(engine: Engine, max_batch: int) -> tuple[int, ...]:
    """The batch sizes to warm up an engine with while another one answers: on a CPU, as little as brings it to life."""
    return (1,) if engine.device == "cpu" else bucket_sizes(max_batch)
