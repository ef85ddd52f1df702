"""One image's way through the server, stage by stage.

source ─decode (worker process)─► Planes ─queue, encode (engine thread)─► rows ─assign (thread)─► answer

On a GPU the engine searches too: rows are embeddings, and the nearest clusters there (core's rows.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from deepmcat_core import logs
from deepmcat_core.assigner import DEFAULT_TOP_K, Assigner, Assignment
from deepmcat_core.categorizer import Categorization, Categorizer
from deepmcat_core.engine import BadEmbeddings, Engine, Images, OutOfMemory
from deepmcat_core.errors import InferenceError
from deepmcat_core.frame import ImageSource
from deepmcat_core.preamble import hides_program
from deepmcat_server.admission import Permit
from deepmcat_server.batcher import Batcher, BatchFailed
from deepmcat_server.decoding import Decoder, is_read_at_once
from deepmcat_server.errors import EncoderUnavailable, ServerBusy
from deepmcat_server.forecast import Forecaster
from deepmcat_server.gathering import Gatherer
from deepmcat_server.metrics import Metrics

Floats = npt.NDArray[np.float32]

LOG = logs.logger("server.pipeline")


class Pipeline:
    """Decoder, batcher and categorizer joined. Leaving the context ends the assigning thread."""

    def __init__(self, *, categorizer: Categorizer, decoder: Decoder, batcher: Batcher, metrics: Metrics) -> None:
        self.categorizer = categorizer
        self.forecaster = Forecaster(decoder, batcher)
        """How long an image would take here."""
        self._decoder = decoder
        self._batcher = batcher
        self._metrics = metrics
        # One thread: searching must not hold up the event loop, and what waits for it is searched together.
        self._assigning = Gatherer(self._assign_each, name="deepmcat-assign")

    def most_frames(self, frames: int) -> int:
        """The most frames that an image has here. frames: those asked for, 0 for the default."""
        return self.categorizer.read_options(frames).frames.count

    def reads_at_once(self, content: object) -> bool:
        """Whether an image needs no worker to be read."""
        return is_read_at_once(content, self.categorizer.artifact.manifest.preprocessing.size)

    async def categorize(self, source: ImageSource, *, permit: Permit, frames: int, top_k: int) -> Categorization:
        """The answer for one image. frames, top_k: 0 for the defaults. Raises ImageError, InferenceError, ServerError.

        Cancelling it takes the image out of whatever it waits for; what is over its time goes no stage further.
        """
        if isinstance(source, bytes) and hides_program(source):  # whatever becomes of the rest
            self._metrics.preamble_executable()
        with _translated():
            return await self._by_stages(source, permit, frames, top_k)

    async def assign(
        self, planes: npt.NDArray[np.uint8], *, permit: Permit
    ) -> tuple[Floats, Sequence[Assignment], int]:
        """For preprocessed planes (n, S, S), each an image: embeddings (n, D), assignments, and the catalog's version.

        Raises InferenceError, ServerError.
        """
        caller, deadline = permit.caller, permit.deadline
        permit.decoded(len(planes))
        with _translated():
            with self._metrics.leaving("queue", deadline):
                rows = await self._batcher.embed(planes, caller=caller, deadline=deadline)
            with self._metrics.leaving("assign", deadline), self._metrics.stage("assign"):
                assignments, assigner = await self._assigning.call((rows, 1))
        for assignment in assignments:
            self._metrics.answer(assignment)
        return self.categorizer.embeddings_of(rows), assignments, assigner.catalog.version

    async def _by_stages(self, source: ImageSource, permit: Permit, frames: int, top_k: int) -> Categorization:
        caller, deadline = permit.caller, permit.deadline
        with self._metrics.leaving("decode", deadline), self._metrics.stage("decode"):
            options = self.categorizer.read_options(frames)
            planes = await self._decoder.read(source, options, caller=caller, deadline=deadline)
        permit.decoded(len(planes.planes))
        with self._metrics.leaving("queue", deadline):
            rows = await self._batcher.embed(planes.planes, caller=caller, deadline=deadline)  # (F, W)
        with self._metrics.leaving("assign", deadline), self._metrics.stage("assign"):
            assignments, assigner = await self._assigning.call((rows, top_k or DEFAULT_TOP_K))
            answer = self.categorizer.answer_from(planes, rows, assignments, assigner)
        self._metrics.answer(answer.assignment)
        return answer

    def _assign_each(self, images: list[tuple[Floats, int]]) -> list[tuple[list[Assignment], Assigner]]:
        """The assignments of images by their rows and top_k, and whose they are: of one catalog version."""
        assigner = self.categorizer.assigner
        return [(assignments, assigner) for assignments in assigner.assign_each(images)]

    async def __aenter__(self) -> Self:
        """Nothing: the thread starts with the first image."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the assigning thread."""
        self._assigning.close()


@contextmanager
def _translated() -> Iterator[None]:
    """From what stages raise to what callers are told."""
    try:
        yield
    except BatchFailed as error:
        if isinstance(error.__cause__, EncoderUnavailable):
            raise EncoderUnavailable(str(error.__cause__)) from error
        raise InferenceError("the encoder failed on this image") from error
    except TimeoutError as error:
        raise ServerBusy("the time of the image was over before it was its turn; send it again") from error


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch would do."""
    return isinstance(error, OutOfMemory | MemoryError)


def logged_embed(embed: Callable[[Images], Floats]) -> Callable[[Images], Floats]:
    """`embed` for a batcher: NaN in the rows that are no embeddings, and one log line where it fails.

    The callers of the batch learn only that it did.
    """

    def logged(images: Images) -> Floats:
        try:
            return embed(images)
        except BadEmbeddings as error:
            logs.event(LOG, logging.ERROR, "bad embeddings", batch_size=len(images), exc_info=True)
            return error.with_nan()
        except Exception:
            logs.event(LOG, logging.ERROR, "batch failed", batch_size=len(images), exc_info=True)
            raise

    return logged


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
