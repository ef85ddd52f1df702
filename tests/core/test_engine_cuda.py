"""CUDA graphs: which batches they take, that they are proven first, and that an engine goes on where they fail."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.core.encoders import SIZE, images, seeded_encoder

from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import LARGEST_BATCH
from deepmcat_core.engine_cuda import Run, Slot, bucket
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.errors import InferenceError

LARGEST = LARGEST_BATCH["cpu"]


class Recorder:
    """A CPU that plays a CUDA device: nothing is done before `finish` waits for it.

    disturb: what becomes of a recorded run's embeddings.
    """

    def __init__(self, disturb: Callable[[torch.Tensor], torch.Tensor] = lambda embeddings: embeddings) -> None:
        self.recorded: list[int] = []
        self.ran: list[int] = []
        self.most_under_way = 0
        self.disturb = disturb
        self._under_way: dict[int, tuple[Slot, Run, int]] = {}

    def slot(self, largest: int, size: int, width: int) -> Slot:
        shape = (largest, 1, size, size)
        images, staged = (torch.full(shape, 255, dtype=torch.uint8) for _ in range(2))
        return Slot(images, staged, torch.zeros((largest, width)), copied=None, done=None)

    def record(self, run: Run, rows: int, size: int) -> Run:
        self.recorded.append(rows)

        def replay(batch: torch.Tensor) -> torch.Tensor:
            assert batch.shape == (rows, 1, size, size)
            self.ran.append(rows)
            return self.disturb(run(batch))

        return replay

    def start(self, slot: Slot, run: Run, rows: int) -> None:
        assert id(slot) not in self._under_way, "the slot is still in use"
        self._under_way[id(slot)] = (slot, run, rows)
        self.most_under_way = max(self.most_under_way, len(self._under_way))

    def finish(self, slot: Slot) -> None:
        _, run, rows = self._under_way.pop(id(slot))
        slot.staged[:rows] = slot.images[:rows]
        slot.result[:rows] = run(slot.staged[:rows])


@pytest.fixture(name="encoder")
def encoder_fixture() -> Encoder:
    """One for each test: an engine takes it over."""
    return seeded_encoder()


@pytest.fixture(name="recorder")
def recorder_fixture() -> Recorder:
    return Recorder()


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 100), (100, 100)])
def test_buckets_are_powers_of_two_up_to_the_largest(count: int, rows: int) -> None:
    """A batch is padded to the next power of two, and never beyond the largest batch."""
    assert bucket(count, 100) == rows


def test_warming_records_a_graph_of_each_bucket_once(encoder: Encoder, recorder: Recorder) -> None:
    """Batch sizes that share a bucket share its graph, and warming again records nothing."""
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    assert engine.graphs == ()

    engine.warm([1, 2, 3, 4, 7])
    engine.warm([5])

    assert recorder.recorded == [1, 2, 4, 8]
    assert engine.graphs == (1, 2, 4, 8)


@pytest.mark.parametrize("count", [1, 3, 4, 3 * LARGEST + 3])
def test_graphs_answer_as_the_plain_path_does(encoder: Encoder, recorder: Recorder, count: int) -> None:
    """Padded, whole and split batches: each image has its embedding, whatever lay in the buffers before."""
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    expected = engine.embed(images(count))
    engine.warm([1, 4, LARGEST])
    engine.embed(images(LARGEST)[::-1])
    recorder.ran.clear()

    given = engine.embed(images(count))

    np.testing.assert_allclose(given, expected, atol=1e-5)
    whole, rest = divmod(count, LARGEST)
    assert recorder.ran == [LARGEST] * whole + [bucket(rest, LARGEST)]


def test_parts_of_a_large_batch_overlap(encoder: Encoder, recorder: Recorder) -> None:
    """While one part is computed the next is under way, and no more than two are."""
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    engine.warm([LARGEST])
    assert recorder.most_under_way == 1

    engine.embed(images(4 * LARGEST))

    assert recorder.most_under_way == 2


def test_a_batch_without_a_graph_runs_plainly(encoder: Encoder, recorder: Recorder) -> None:
    """A bucket that was not warmed, images of another size, and a batch whose rest has no graph need none."""
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    engine.warm([2, LARGEST])
    recorder.ran.clear()

    for batch in (images(3), images(LARGEST + 3), np.zeros((2, 1, 64, 64), np.uint8), images(0)):
        assert engine.embed(batch).shape == (len(batch), 16)

    assert recorder.ran == []


@pytest.mark.parametrize(
    "disturb",
    [
        lambda embeddings: embeddings.flip(1),
        lambda embeddings: embeddings * float("nan"),
        lambda embeddings: torch.nn.functional.normalize(embeddings + 0.02),
    ],
    ids=["other", "nan", "imprecise"],
)
def test_a_graph_that_differs_is_not_used(
    encoder: Encoder, caplog: pytest.LogCaptureFixture, disturb: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A graph whose answers are not the plain path's is dropped and logged; the engine answers as before."""
    recorder = Recorder(disturb)
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    expected = engine.embed(images(2))

    with caplog.at_level(logging.WARNING, "deepmcat"):
        engine.warm([2])

    assert (recorder.recorded, engine.graphs) == ([2], ())
    assert [record.message for record in caplog.records] == ["CUDA graph differs and is not used"]
    np.testing.assert_array_equal(engine.embed(images(2)), expected)


@pytest.mark.parametrize("error", [RuntimeError("capture"), torch.OutOfMemoryError("memory")])
def test_where_recording_fails_the_engine_does_without(
    encoder: Encoder, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    """A failure to record is logged once, is no failure to warm, and is not tried again."""

    class Unable(Recorder):
        def record(self, run: Run, rows: int, size: int) -> Run:
            super().record(run, rows, size)
            raise error

    recorder = Unable()
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    with caplog.at_level(logging.WARNING, "deepmcat"):
        engine.warm([1, 2, 4])

    assert (recorder.recorded, engine.graphs) == ([1], ())
    assert [record.message for record in caplog.records] == ["CUDA graphs given up"]
    assert engine.embed(images(3)).shape == (3, 16)


def test_a_graph_that_fails_later_costs_no_answer(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    """A batch whose graph fails is answered by the plain path, as all of its bucket are from then on; others go on."""

    def broken(embeddings: torch.Tensor) -> torch.Tensor:
        if len(embeddings) == 2:
            raise RuntimeError("CUDA error")
        return embeddings

    recorder = Recorder()
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    engine.warm([1, 2, 4])
    expected = engine.embed(images(4))
    recorder.disturb = broken
    recorder.ran.clear()

    with caplog.at_level(logging.WARNING, "deepmcat"):
        given = [engine.embed(images(4)[:count]) for count in (2, 2, 1, 4)]

    for embeddings in given:
        np.testing.assert_allclose(embeddings, expected[: len(embeddings)], atol=1e-5)
    assert recorder.ran == [2, 1, 4]
    assert engine.graphs == (1, 4)
    assert [record.message for record in caplog.records] == ["CUDA graph failed and is not used"]
    assert caplog.records[0].fields == {"batch_size": 2, "error_type": "RuntimeError"}  # type: ignore[attr-defined]


def test_a_graph_that_fails_within_a_large_batch_costs_no_answer(encoder: Encoder, recorder: Recorder) -> None:
    """Which of its parts failed is not known, so none of their graphs is used again; what was under way is left."""
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    batch = images(3 * LARGEST + 3)
    expected = engine.embed(batch)
    engine.warm([1, 4, LARGEST])
    working = recorder.disturb
    numbers = itertools.count()

    def broken(embeddings: torch.Tensor) -> torch.Tensor:
        if next(numbers) == 1:
            raise RuntimeError("CUDA error")
        return embeddings

    recorder.disturb = broken
    given = engine.embed(batch)
    recorder.disturb = working

    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert engine.graphs == (1,)
    np.testing.assert_allclose(engine.embed(batch[:1]), expected[:1], atol=1e-5)


def test_where_memory_runs_out_graphs_give_theirs_back(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    """A graph for which memory is short is the end of all, for they hold some."""

    def short(embeddings: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("memory")

    recorder = Recorder()
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    engine.warm([1, 2])
    expected = engine.embed(images(2))
    recorder.disturb = short

    with caplog.at_level(logging.WARNING, "deepmcat"):
        given = [engine.embed(images(2)) for _ in range(2)]

    np.testing.assert_allclose(given, [expected] * 2, atol=1e-6)
    assert engine.graphs == ()
    assert [record.message for record in caplog.records] == ["CUDA graphs given up"]


def test_nan_of_a_graph_is_never_an_answer(encoder: Encoder) -> None:
    """What a graph gives is checked as what the plain path gives."""
    recorder = Recorder()
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    engine.warm([2])
    recorder.disturb = lambda embeddings: embeddings * float("nan")

    with pytest.raises(InferenceError, match="finite"):
        engine.embed(images(2))


def test_a_closed_engine_has_no_graphs(encoder: Encoder, recorder: Recorder) -> None:
    """Closing frees the graphs, and nothing runs after it."""
    engine = TorchEngine(encoder, size=SIZE, recorder=recorder)
    engine.warm([2])

    engine.close()

    assert engine.graphs == ()
    with pytest.raises(InferenceError, match="closed"):
        engine.embed(images(2))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_graphs_on_cuda(encoder: Encoder, precision: str) -> None:
    """On CUDA every size that is warmed gets a graph, in each precision, and split batches come out right."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sizes = [1, 2, 4, 32, LARGEST_BATCH["cuda"]]
    engine = TorchEngine(encoder, "cuda:0", size=SIZE, precision=precision)
    expected = {count: engine.embed(images(count)) for count in (3, 32, 2 * LARGEST_BATCH["cuda"] + 30)}

    engine.warm(sizes)

    assert engine.graphs == tuple(sizes)
    for count, plain in expected.items():
        assert np.einsum("bd,bd->b", engine.embed(images(count)), plain).min() > 0.9999
    engine.close()
