"""The nearest clusters found on the engine's device: what faiss finds on a CPU, at every step to the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.encoders import SIZE, images, seeded_encoder
from tests.core.test_engine_cuda import LARGEST, Recorder

from deepmcat_core import device_search
from deepmcat_core.assigner import DEFAULT_TOP_K, SEARCH_FACTOR, Assigner
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog, Category
from deepmcat_core.centroids import Centroids
from deepmcat_core.device_search import DeviceSearch
from deepmcat_core.engine import BadEmbeddings, SearchingEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.errors import InferenceError
from deepmcat_core.faiss_index import import_faiss
from deepmcat_core.rows import LARGEST_ID, embeddings_of, nearest_of

Search = Callable[[np.ndarray, int, str], DeviceSearch]


def by_product(centroids: np.ndarray, n: int, device: str) -> DeviceSearch:
    return DeviceSearch(centroids, n, device)


def by_faiss(centroids: np.ndarray, n: int, device: str) -> DeviceSearch:
    """A CPU index of tensors, as a GPU's would be searched."""

    class OnGpu:
        def __init__(self) -> None:
            self._index = import_faiss().IndexFlatIP(centroids.shape[1])
            self._index.add(centroids)

        def getDevice(self) -> int:  # noqa: N802  # faiss's name
            return 0

        def search_c(self, *arguments: Any) -> None:
            self._index.search_c(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_search, "on_device", lambda index, device: OnGpu())
        patch.setattr(device_search, "product_search", lambda *arguments: pytest.fail("faiss has an index there"))
        return DeviceSearch(centroids, n, device)


both = pytest.mark.parametrize("search", [by_product, by_faiss])


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def found(search: DeviceSearch, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = search(torch.from_numpy(embeddings)).numpy()
    np.testing.assert_array_equal(embeddings_of(rows, embeddings.shape[1]), embeddings)
    nearest = nearest_of(rows, embeddings.shape[1])
    assert nearest is not None
    return nearest


@both
@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 300), d=st.integers(2, 64), n=st.integers(1, 200))
def test_it_finds_what_faiss_finds_on_a_cpu(search: Search, seed: int, k: int, d: int, n: int) -> None:
    """The same distances within rounding, and the same clusters wherever rounding cannot decide between two."""
    rng = np.random.default_rng(seed)
    vectors, embeddings = unit(rng, k, d), unit(rng, 5, d)
    expected_ids, expected = Centroids(vectors).nearest(embeddings, n)

    ids, distances = found(search(vectors, n, "cpu"), embeddings)

    assert (ids.dtype, distances.dtype) == (expected_ids.dtype, expected.dtype)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    gaps = np.diff(expected, axis=1)
    apart = np.pad(gaps > 1e-5, ((0, 0), (1, 0)), constant_values=True)
    apart &= np.pad(gaps > 1e-5, ((0, 0), (0, 1)), constant_values=n >= k)  # the one behind the last is not known
    np.testing.assert_array_equal(ids[apart], expected_ids[apart])


@both
@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 200))
def test_clusters_equally_near_come_as_faiss_has_them(search: Search, seed: int, k: int) -> None:
    """Of vectors whose products have no rounding, many of them equal, every id is the same."""
    rng = np.random.default_rng(seed)

    def halves(count: int) -> np.ndarray:
        vectors = np.zeros((count, 8), dtype=np.float32)
        for vector in vectors:
            vector[rng.permutation(8)[:4]] = rng.choice([-0.5, 0.5], 4)
        return vectors

    vectors, embeddings = halves(k), halves(5)
    expected_ids, expected = Centroids(vectors).nearest(embeddings, k)

    ids, distances = found(search(vectors, k, "cpu"), embeddings)

    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(ids, expected_ids)


def test_more_centroids_than_a_row_has_numbers_for_are_refused() -> None:
    """Float32 has each whole number up to 2²⁴, and no further."""
    assert np.float32(LARGEST_ID) - np.float32(LARGEST_ID - 1) == 1
    with pytest.raises(ValueError, match="16777217 centroids"):
        DeviceSearch(np.empty((LARGEST_ID + 1, 0), dtype=np.float32), 1, "cpu")


def assigner_of(centroids: np.ndarray, categories: int) -> Assigner:
    """Cluster i belongs to category i modulo their number."""
    k = len(centroids)
    calibration = Calibration(
        images=200,
        scores=np.linspace(0, 2, 200, dtype=np.float32),
        offsets=np.array([0, 200]),
        groups=np.zeros(k, dtype=np.int64),
        mean_distances=np.full(k, 0.1, dtype=np.float32),
    )
    named = tuple(
        Category(id=f"c-{i}", name=f"name {i}", clusters=tuple(range(i, k, categories))) for i in range(categories)
    )
    return Assigner(Centroids(centroids), calibration, Catalog(version=1, k=k, categories=named))


@both
@pytest.mark.parametrize("top_k", [1, 3, 9])
@pytest.mark.parametrize("n", [1, 4, 192])
def test_an_assignment_is_the_same(search: Search, top_k: int, n: int) -> None:
    """Whatever was found on the device: where it has too few categories, more are searched for."""
    rng = np.random.default_rng(0)
    vectors, embeddings = unit(rng, 400, 16), unit(rng, 20, 16)
    assigner = assigner_of(vectors, categories=10)

    rows = search(vectors, n, "cpu")(torch.from_numpy(embeddings)).numpy()

    for assigned, expected in zip(assigner.assign(rows, top_k), assigner.assign(embeddings, top_k), strict=True):
        assert [(c.category_id, c.cluster_id) for c in assigned.candidates] == [
            (c.category_id, c.cluster_id) for c in expected.candidates
        ]
        assert [c.distance for c in assigned.candidates] == pytest.approx([c.distance for c in expected.candidates])
        assert assigned.p_value == pytest.approx(expected.p_value, abs=1e-6)
        assert (assigned.category_id, assigned.outlier) == (expected.category_id, expected.outlier)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 2 * LARGEST + 3])
def test_an_engine_searches_what_it_has_computed(graphs: bool, count: int) -> None:
    """By graphs and plainly, in parts or whole: rows are the embeddings and their nearest; `embed` stays as it is."""
    expected = TorchEngine(seeded_encoder(), size=SIZE).embed(images(count))
    centroids = unit(np.random.default_rng(1), 50, expected.shape[1])
    recorder = Recorder()
    engine = TorchEngine(seeded_encoder(), size=SIZE, recorder=recorder if graphs else None)
    assert isinstance(engine, SearchingEngine)

    engine.search_among(centroids, 7)
    engine.warm([1, 4, LARGEST])
    recorder.ran.clear()
    rows = engine.embed_rows(images(count))

    assert rows.shape == (count, engine.dim + 2 * 7)
    assert bool(recorder.ran) == (graphs and count > 0)
    np.testing.assert_allclose(embeddings_of(rows, engine.dim), expected, atol=1e-5)
    np.testing.assert_array_equal(engine.embed(images(count)), embeddings_of(rows, engine.dim))
    nearest = nearest_of(rows, engine.dim)
    assert nearest is not None
    if count:
        ids, distances = Centroids(centroids).nearest(np.ascontiguousarray(rows[:, : engine.dim]), 7)
        np.testing.assert_array_equal(nearest[0], ids)
        np.testing.assert_allclose(nearest[1], distances, atol=1e-6)


def test_without_centroids_rows_are_embeddings() -> None:
    """Who does not ask for a search pays for none."""
    engine = TorchEngine(seeded_encoder(), size=SIZE)

    rows = engine.embed_rows(images(3))

    np.testing.assert_array_equal(rows, engine.embed(images(3)))
    assert nearest_of(rows, engine.dim) is None


def test_a_bad_embedding_leaves_the_rows_of_the_others() -> None:
    """The width of a row does not depend on who is in the batch."""
    encoder = seeded_encoder()
    engine = TorchEngine(encoder, size=SIZE)
    engine.search_among(unit(np.random.default_rng(1), 50, engine.dim), 7)
    good = engine.embed_rows(images(3))
    forward = encoder.forward

    def spoilt(batch: torch.Tensor) -> torch.Tensor:
        embeddings = forward(batch).clone()
        embeddings[1] = torch.nan
        return embeddings

    encoder.forward = spoilt  # type: ignore[method-assign]
    with pytest.raises(BadEmbeddings) as caught:
        engine.embed_rows(images(3))

    rows = caught.value.with_nan()
    np.testing.assert_array_equal(rows[[0, 2]], good[[0, 2]])
    assert np.isnan(rows[1]).all()


def test_a_closed_engine_searches_nothing() -> None:
    """Closing frees the centroids too."""
    engine = TorchEngine(seeded_encoder(), size=SIZE)
    engine.search_among(unit(np.random.default_rng(1), 50, engine.dim), 7)
    engine.close()

    with pytest.raises(InferenceError, match="closed"):
        engine.embed_rows(images(1))


@pytest.mark.gpu
def test_a_gpu_finds_what_faiss_finds_on_a_cpu() -> None:
    """At the size of an artifact, by whatever this machine has; by the product too, where that is not it."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(0)
    vectors, embeddings = unit(rng, 4_000, 256), unit(rng, 64, 256)
    n = DEFAULT_TOP_K * SEARCH_FACTOR
    expected_ids, expected = Centroids(vectors).nearest(embeddings, n)

    torch.backends.cuda.matmul.fp32_precision = "ieee"
    on_device = torch.from_numpy(embeddings).to("cuda:0")
    rows = DeviceSearch(vectors, n, "cuda:0")(on_device).cpu().numpy()
    similarities, ids = device_search.product_search(vectors, n, "cuda:0")(on_device)

    nearest = nearest_of(rows, 256)
    assert nearest is not None
    clear = np.diff(expected[:, :2], axis=1)[:, 0] > 1e-5
    assert clear.mean() > 0.9
    for found_ids, distances in (nearest, (ids.cpu().numpy(), 1 - similarities.cpu().numpy())):
        np.testing.assert_allclose(distances, expected, atol=1e-5)
        np.testing.assert_array_equal(found_ids[clear, 0], expected_ids[clear, 0])


def test_indexes_of_others_stay_as_they_are() -> None:
    """Searching tensors changes nothing of faiss: it takes search parameters as before."""
    faiss, vectors = import_faiss(), unit(np.random.default_rng(0), 20, 4)
    found(by_faiss(vectors, 3, "cpu"), vectors[:2])

    index = faiss.IndexFlatIP(4)
    index.add(vectors)
    assert index.search(vectors[:1], 1, params=faiss.SearchParameters())[1].tolist() == [[0]]
