"""Metrics that have each stage in the trace of its image, too. Where tracing is off they are not loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Self

from prometheus_client import CollectorRegistry

from deepmcat_server.batcher import BatchReport
from deepmcat_server.metrics import Metrics, Stage
from deepmcat_server.status import INTERNAL, outcome_of, reason_of
from deepmcat_server.tracing import CALL_TRACE, FAULTS, CallTrace, ImageTrace
from deepmcat_server.tracing import Stage as StageTrace

_IMAGE: ContextVar[ImageTrace | None] = ContextVar("traced image", default=None)
"""That of the current task. A stream reads an image in one task and answers it in another, which inherits it."""


class TracedMetrics(Metrics):
    """Counts and times as `Metrics` does, and tells the traces."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._last: tuple[BatchReport, int] | None = None  # and when it ended

    def of_line(self) -> Self:
        """Those of one artifact: its last batch is not that of others."""
        return copy(self)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time a stage, and trace it. An image of a stream begins with being received."""
        call = CALL_TRACE.get()
        begins = stage == "receive" and _IMAGE.get() is None and call is not None and call.images_are_messages
        with _arriving(call.image()) if begins and call else _lasting(stage), super().stage(stage):
            yield

    @contextmanager
    def leaving(self, stage: Stage, deadline: float) -> Iterator[None]:
        """Count an image that is left here, and trace waiting: to get in, and for the encoder."""
        with super().leaving(stage, deadline):
            if stage == "receive":
                with _lasting("admit"):
                    yield
            elif stage == "queue":
                with self._in_batch():
                    yield
            else:
                yield

    @contextmanager
    def image(self, images: int = 1) -> Iterator[None]:
        """Count an image, and trace it, until it ends."""
        image, begun = _IMAGE.get(), None
        if image is None and (call := CALL_TRACE.get()) is not None:
            image = call.image()
            begun = _IMAGE.set(image)
        ended: BaseException | None = None
        try:
            with super().image(images):
                yield
        except BaseException as error:
            ended = error
            raise
        finally:
            if begun is not None:
                _IMAGE.reset(begun)
            if image is not None:
                _end(image, ended)

    def refused(self, error: Exception) -> None:
        """Count one image that did not get in."""
        super().refused(error)
        if (image := _IMAGE.get()) is not None:
            image.refuse(error)

    def batch(self, report: BatchReport) -> None:
        """A batch has run. Those who waited for it are told next, before another one of the line can have run."""
        super().batch(report)
        self._last = report, time.time_ns()

    @contextmanager
    def _in_batch(self) -> Iterator[None]:
        """Waiting for the encoder and being in it, told apart by the batch that has just run."""
        start_ns, ended = time.time_ns(), None
        try:
            yield
        except BaseException as error:
            ended = error
            raise
        finally:
            if (image := _IMAGE.get()) is not None:
                for stage in self._batch_stages(start_ns, ended):
                    image.stage(stage)

    def _batch_stages(self, start_ns: int, error: BaseException | None) -> Iterator[StageTrace]:
        if self._last is None or isinstance(error, asyncio.CancelledError | TimeoutError):
            yield StageTrace("queue", start_ns, time.time_ns())
            return
        report, end_ns = self._last
        begin_ns = max(start_ns, end_ns - int(report.encode_s * 1e9))
        yield StageTrace("queue", start_ns, begin_ns)
        yield StageTrace("encode", begin_ns, end_ns, _is_fault(error), {"deepmcat.batch_size": report.frames})


@contextmanager
def _arriving(image: ImageTrace) -> Iterator[None]:
    """An image of a stream is read, and let in or refused."""
    begun = _IMAGE.set(image)
    try:
        with _lasting("receive"):
            yield
    finally:
        _IMAGE.reset(begun)
        if image.refused is not None:
            _end(image, image.refused)


@contextmanager
def _lasting(name: str) -> Iterator[None]:
    """A stage, of the image or else of the call."""
    start_ns, ended = time.time_ns(), None
    try:
        yield
    except BaseException as error:
        ended = error
        raise
    finally:
        traced: ImageTrace | CallTrace | None = _IMAGE.get() or CALL_TRACE.get()
        if traced is not None:
            traced.stage(StageTrace(name, start_ns, time.time_ns(), _is_fault(ended)))


def _end(image: ImageTrace, error: BaseException | None) -> None:
    """By how it ended, named as the metrics name it."""
    if error is None:
        image.end("ok", failed=False)
    elif isinstance(error, Exception):
        image.end(reason_of(error).lower(), failed=_is_fault(error))
    else:
        image.end("cancelled", failed=False)


def _is_fault(error: BaseException | None) -> bool:
    """Whether the server is to blame."""
    if not isinstance(error, Exception) or isinstance(error, TimeoutError):
        return False
    return (outcome_of(error) or INTERNAL).code.name in FAULTS
