"""An engine that searches on its device: the server answers as with one that leaves it to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.engine import Engine
from deepmcat_core.rows import embeddings_of

torch = pytest.importorskip("torch")
from deepmcat_core.device_search import DeviceSearch  # noqa: E402  # needs torch


class Searching:
    """An engine that says it is a GPU's. searched: the widths of its rows."""

    name, device, precision = "searching", "cuda:0", "float32"

    def __init__(self, inner: Engine) -> None:
        self._inner, self.dim = inner, inner.dim
        self.searched: list[int] = []

    def search_among(self, centroids: Any, n: int) -> None:
        self._search = DeviceSearch(centroids, n, "cpu")

    def embed(self, images: Any) -> Any:
        return embeddings_of(self.embed_rows(images), self.dim)

    def embed_rows(self, images: Any) -> Any:
        rows = self._search(torch.from_numpy(self._inner.embed(images))).numpy()
        self.searched.append(rows.shape[1])
        return rows

    def warm(self, batches: Any) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""


def numbers_taken_from(answer: pb.Categorization) -> list[float]:
    """Those that batches of another size round otherwise; zero in the answer after that."""
    embedding = np.frombuffer(answer.embedding.data, "<f4").tolist()
    answer.ClearField("embedding")
    numbers = [*embedding]
    for each in (answer.assignment, *answer.assignment.candidates, *(frame.assignment for frame in answer.frames)):
        numbers.append(each.distance)
        each.distance = 0.0
    numbers.append(answer.assignment.p_value)
    answer.assignment.ClearField("p_value")
    return numbers


async def test_answers_are_those_of_a_search_on_the_host(serving, engine: Engine, pngs, request_of):
    """Streamed in batches and alone, with any number of candidates: every field is the same, the embedding too."""

    async def answers(of: Engine) -> list[pb.Categorization]:
        async with serving(engine=of, max_batch=5) as served:
            items = [
                pb.CategorizeStreamRequest(item=request_of(pngs[i % 4], str(i), want_embedding=True, top_k=1 + i % 3))
                for i in range(30)
            ]
            streamed = [each async for each in served.stub.CategorizeStream(iter(items))]
            alone = await served.stub.Categorize(request_of(pngs[0], want_embedding=True))
        return [each.categorization for each in (*streamed, alone)]

    searching = Searching(engine)
    given, expected = await answers(searching), await answers(engine)

    assert len(given) == 31
    for ours, theirs in zip(given, expected, strict=True):
        np.testing.assert_allclose(numbers_taken_from(ours), numbers_taken_from(theirs), atol=1e-5)
        assert ours == theirs
    assert min(searching.searched) > engine.dim


async def test_planes_of_tritonclient_get_their_embeddings(serving, engine: Engine, draft):
    """The Open Inference Protocol gives embeddings of D numbers, whatever a row has besides."""
    triton = pytest.importorskip("tritonclient.grpc")
    from tritonclient.grpc import aio

    planes = np.ascontiguousarray(draft.self_test.images[:, 0])
    async with (
        serving(engine=Searching(engine)) as served,
        aio.InferenceServerClient(str(served.running.listen)) as client,
    ):
        tensor = triton.InferInput("plane", list(planes.shape), "UINT8")
        tensor.set_data_from_numpy(planes)
        result = await client.infer("deepmcat", [tensor])

    np.testing.assert_allclose(result.as_numpy("embedding"), engine.embed(planes[:, None]), atol=1e-6)
    assert result.as_numpy("cluster").tolist() == [0, 1, 2, 3]
