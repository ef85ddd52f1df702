"""The nearest neighbours of every image among the others: exact up to 200,000 rows, above with a measured recall.

Above, an inverted file (IVF; Sivic and Zisserman 2003) looks into the `nprobe` of 4 √N cells nearest to an image.
How many are enough depends on the data: they are doubled until a sample's neighbours agree with an exact search.
Memory is the embeddings once more, in the index, and one block of answers: never N × N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.faiss_index import import_faiss, on_device

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

EXACT_UP_TO = 200_000
RECALL = 0.95
SAMPLE = 1000  # queries that the recall is measured on: its standard error is below .007 even if all k stand or fall
FIRST_PROBES = 8
ROWS_PER_CELL = 64  # that the cells are trained on: fewer than 39 make faiss warn
QUERIES, ROWS = 8192, 65536  # in a block
TIE = 1e-5  # float32's rounding of a similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The k nearest others of each of N images, most similar first.

    indices: (N, k) rows. similarities: (N, k), cosines. recall: the share of the true neighbours among them, 1 where
    the search was exact, measured on a sample where it was not.
    """

    indices: Indices
    similarities: Floats
    recall: float


def nearest_neighbours(
    embeddings: Floats, k: int, *, device: str = "cpu", seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> Neighbours:
    """The `k` nearest others of each row, or all others where there are fewer.

    embeddings: (N, D) unit rows, may be memory-mapped. An image is told from its doubles by its row, so it is never
    its own neighbour and they are. seed: of the cells and of the sample, above `exact_up_to` rows.
    """
    n = len(embeddings)
    k = min(k, n - 1)
    if k < 1:
        return Neighbours(indices=np.empty((n, 0), np.int32), similarities=np.empty((n, 0), np.float32), recall=1.0)
    if n <= exact_up_to:
        return _all(_Flat(embeddings, device), embeddings, k, recall=1.0)
    cells = _Cells(embeddings, device, seed)
    rows = np.sort(np.random.default_rng(seed).choice(n, min(SAMPLE, n), replace=False))
    truth = _exact(embeddings, rows, k)
    while (recall := _recall(_others(cells, embeddings, rows, k)[1], truth)) < RECALL and cells.probes < cells.count:
        cells.probes *= 2
    return _all(cells, embeddings, k, recall)


class _Flat:
    """Exact search."""

    def __init__(self, embeddings: Floats, device: str) -> None:
        index = import_faiss().IndexFlatIP(embeddings.shape[1])
        _fill(index, embeddings)
        self._index = on_device(index, device)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        """Similarities and rows of the `k` nearest of each query, (B, k) each."""
        similarities, rows = self._index.search(queries, k)
        return similarities, rows


class _Cells:
    """Search in the nearest `probes` of `count` cells."""

    def __init__(self, embeddings: Floats, device: str, seed: int) -> None:
        faiss = import_faiss()
        n, dim = embeddings.shape
        self.count = min(int(4 * np.sqrt(n)), n)
        self.probes = min(FIRST_PROBES, self.count)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, self.count, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.min_points_per_centroid = seed, 1
        sample = np.random.default_rng(seed).choice(n, min(n, self.count * ROWS_PER_CELL), replace=False)
        index.train(_float32(embeddings[np.sort(sample)]))
        _fill(index, embeddings)
        self._index = on_device(index, device)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        """As _Flat.search; a query whose cells hold fewer than `k` images is asked of all."""
        similarities, rows = self._index.search(queries, k, params=self._parameters(self.probes))
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            similarities[short], rows[short] = self._index.search(
                queries[short], k, params=self._parameters(self.count)
            )
        return similarities, rows

    def _parameters(self, probes: int) -> Any:
        return import_faiss().SearchParametersIVF(nprobe=min(probes, self.count))


def _all(index: _Flat | _Cells, embeddings: Floats, k: int, recall: float) -> Neighbours:
    n = len(embeddings)
    indices, similarities = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for where in _blocks(n, QUERIES):
        indices[where], similarities[where] = _others(index, embeddings, np.arange(where.start, where.stop), k)
    return Neighbours(indices=indices, similarities=similarities, recall=recall)


def _others(index: _Flat | _Cells, embeddings: Floats, rows: Ints, k: int) -> tuple[Ints, Floats]:
    """The neighbours of `rows` and their similarities, (B, k) each: one more is asked for, and the row itself left out.

    Where more than k doubles tie with a row, it may not be among the answers: then the last of them goes.
    """
    similarities, found = index.search(_float32(embeddings[rows]), k + 1)
    kept = found != rows[:, None]
    kept[kept.all(axis=1), -1] = False
    return found[kept].reshape(-1, k), similarities[kept].reshape(-1, k)


def _exact(embeddings: Floats, rows: Ints, k: int) -> Floats:
    """The similarities of the true `k` nearest others of `rows`, (B, k), descending, block by block of all rows."""
    queries = _float32(embeddings[rows])
    best = np.full((len(rows), k), -np.inf, dtype=np.float32)
    for where in _blocks(len(embeddings), ROWS):
        similarities = queries @ _float32(embeddings[where]).T
        here = (rows >= where.start) & (rows < where.stop)
        similarities[here, rows[here] - where.start] = -np.inf
        if similarities.shape[1] > k:
            similarities = -np.partition(-similarities, k - 1, axis=1)[:, :k]
        best = -np.sort(-np.concatenate([best, similarities], axis=1), axis=1)[:, :k]
    return best


def _recall(similarities: Floats, truth: Floats) -> float:
    """The share of answers that are at least as near as the true k-th: of images that tie, any will do."""
    return float((similarities >= truth[:, -1:] - TIE).mean())


def _fill(index: Any, embeddings: Floats) -> None:
    for where in _blocks(len(embeddings), ROWS):
        index.add(_float32(embeddings[where]))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _float32(rows: Floats) -> Floats:
    return np.ascontiguousarray(rows, dtype=np.float32)
