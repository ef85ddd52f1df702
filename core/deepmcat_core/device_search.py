"""The nearest clusters of embeddings that are on a device, found there: no round trip to the host between the two.

With faiss on the device where this faiss has GPU indexes; else a product of matrices and its largest. Either gives
what faiss gives on a CPU (`Centroids.nearest`), up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deepmcat_core.engine import Floats
from deepmcat_core.faiss_index import import_faiss, on_device
from deepmcat_core.rows import LARGEST_ID

Search = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(B, D) → similarities (B, n), descending, and ids (B, n)."""


class DeviceSearch:
    """Finds the `n` nearest of K centroids for embeddings on one device. For one thread, as an engine is."""

    def __init__(self, centroids: Floats, n: int, device: str) -> None:
        """centroids: (K, D) unit vectors, K at most 2²⁴. n: at most K are found. device: "cpu" or "cuda:N"."""
        if len(centroids) > LARGEST_ID:
            raise ValueError(f"{len(centroids)} centroids; at most {LARGEST_ID} can be searched on a device")
        self.n = min(n, len(centroids))
        self._search = faiss_search(centroids, self.n, device) or product_search(centroids, self.n, device)

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, D) float32 → rows (B, D + 2n) float32 (rows.py), both on the device."""
        similarities, ids = _later_first(*self._search(embeddings))
        return torch.cat([embeddings, similarities, ids.float()], dim=1)


def faiss_search(centroids: Floats, n: int, device: str) -> Search | None:
    """By a flat faiss index on the device, in torch's stream; None where faiss has no index there."""
    flat = import_faiss().IndexFlatIP(centroids.shape[1])
    flat.add(centroids)
    index = on_device(flat, device)
    return tensor_search(index, n) if hasattr(index, "getDevice") else None


def tensor_search(index: Any, n: int) -> Search:
    """By a faiss index, of tensors that are where it is."""
    faiss = import_faiss()

    def search(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings, shape = embeddings.contiguous(), (len(embeddings), n)
        similarities = torch.empty(shape, dtype=torch.float32, device=embeddings.device)
        ids = torch.empty(shape, dtype=torch.int64, device=embeddings.device)
        from_, to = faiss.cast_integer_to_float_ptr, faiss.cast_integer_to_idx_t_ptr
        if embeddings.is_cuda:  # after what computes the embeddings, before what uses the answer
            stream = torch.cuda.current_stream(embeddings.device).cuda_stream
            index.getResources().setDefaultStream(index.getDevice(), faiss.cast_integer_to_cudastream_t(stream))
        # The pointers themselves: faiss.contrib.torch_utils would replace `search` of all indexes in this process, by
        # one that knows no search parameters.
        index.search_c(
            len(embeddings), from_(embeddings.data_ptr()), n, from_(similarities.data_ptr()), to(ids.data_ptr())
        )
        return similarities, ids

    return search


def product_search(centroids: Floats, n: int, device: str) -> Search:
    """By the product with all centroids, of which the largest are taken."""
    columns = torch.from_numpy(centroids).to(device).T  # (D, K)

    def search(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        similarities, ids = (embeddings @ columns).topk(n, dim=1)
        return similarities, ids

    return search


def _later_first(similarities: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of clusters that are equally near the one of the higher id first, as faiss has it on a CPU."""
    ids, order = ids.sort(dim=1, descending=True)
    similarities, order_again = similarities.gather(1, order).sort(dim=1, descending=True, stable=True)
    return similarities, ids.gather(1, order_again)
