"""The reference engine: torch, on a CPU or on CUDA, in float32; or in a precision that passed its gate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from deepmcat_core.cpus import multiplies_bfloat16
from deepmcat_core.device_search import DeviceSearch
from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import (
    LARGEST_BATCH,
    BadEmbeddings,
    Floats,
    Images,
    OutOfMemory,
    batches,
    checked_embeddings,
    checked_images,
)
from deepmcat_core.engine_cuda import Cuda, Device, Graphs, bucket
from deepmcat_core.errors import InferenceError
from deepmcat_core.precision import BFLOAT16, FLOAT16, FLOAT32, kind_of
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_core.rows import embeddings_of

DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}

_TENSOR_CORES = {BFLOAT16: (8, 0), FLOAT16: (7, 0)}  # from this compute capability on


class TorchEngine:
    """Runs an encoder, which it takes over: moved to the device, channels last, in evaluation mode."""

    name = "torch"

    def __init__(
        self,
        encoder: Encoder,
        device: str = "cpu",
        *,
        size: int = Preprocessing().size,
        precision: str = FLOAT32,
        graphs: bool = True,
        recorder: Device | None = None,
    ) -> None:
        """device: "cpu" or "cuda:N". size: S of the images, for warming. precision: one of DTYPES.

        graphs: whether to record CUDA graphs when warmed. recorder: of those, the device's own where None; a CPU has
        none. Raises InferenceError.
        """
        self.device = device
        self.precision = precision
        self.dim = encoder.dim
        self._size = size
        self._cuda = kind_of(device) == "cuda"
        self._largest = LARGEST_BATCH[kind_of(device)]
        self._graphs: Graphs | None = None
        self._search: DeviceSearch | None = None
        with _translated(device):
            encoder.eval().to(device)
            self._encoder: Encoder | None = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if precision != FLOAT32:
                encoder.backbone = _Reduced(encoder.backbone, device, DTYPES[precision])  # type: ignore[assignment]
            if recorder or (self._cuda and graphs):
                recorder = recorder or Cuda(device)
                self._graphs = Graphs(recorder, encoder, size=size, dim=encoder.dim, largest=self._largest)

    def search_among(self, centroids: Floats, n: int) -> None:
        """Find the `n` nearest of these on the device too, from now on, for `embed_rows`. centroids: (K, D)."""
        with _translated(self.device):
            self._search = DeviceSearch(centroids, n, self.device)
        if self._graphs is not None:
            self._graphs.follow_with(self._search, self.dim + 2 * self._search.n)

    @property
    def graphs(self) -> tuple[int, ...]:
        """The batch sizes that run as CUDA graphs."""
        return self._graphs.buckets if self._graphs is not None else ()

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8 → (B, D) float32 unit vectors, in batches of a bounded size. Raises InferenceError."""
        return np.ascontiguousarray(embeddings_of(self.embed_rows(images), self.dim))

    def embed_rows(self, images: Images) -> Floats:
        """The same with the nearest clusters, where `search_among` said so: rows (B, W), as rows.py has them."""
        images = checked_images(images)
        if self._encoder is None:
            raise InferenceError("the engine is closed")
        if len(images) == 0:
            return np.empty((0, self._width), dtype=np.float32)
        with _translated(self.device), torch.inference_mode(), _float32():
            rows = self._by_graphs(images)
            if rows is None:
                rows = self._plain(images)
        try:
            checked_embeddings(embeddings_of(rows, self.dim), (len(images), self.dim))
        except BadEmbeddings as error:
            raise BadEmbeddings(rows, error.bad) from None
        return rows

    def warm(self, batches: Sequence[int]) -> None:
        """Run once with each of these batch sizes, and on CUDA record a graph of each."""
        for count in batches:
            self.embed(np.zeros((count, 1, self._size, self._size), dtype=np.uint8))
            if self._graphs is not None:
                with _translated(self.device), torch.inference_mode(), _float32():
                    self._graphs.record(count, self._plain)

    def close(self) -> None:
        """Free the device."""
        self._encoder = self._graphs = self._search = None
        if self._cuda:
            torch.cuda.empty_cache()

    @property
    def _width(self) -> int:
        """Of a row."""
        return self.dim + (2 * self._search.n if self._search is not None else 0)

    def _by_graphs(self, images: Images) -> Floats | None:
        """The rows where there are graphs for such a batch, and they run."""
        if self._graphs is None or not self._graphs.takes(images):
            return None
        try:
            return self._graphs.embed(images)
        except RuntimeError as error:  # torch's own
            self._graphs.failed(images, error)
            return None

    def _plain(self, images: Images) -> Floats:
        encoder = self._encoder
        assert encoder is not None
        parts = [encoder(self._moved(part))[: len(part)].float() for part in batches(images, self._largest)]
        if self._search is not None:
            parts = [self._search(part) for part in parts]
        rows: Floats = torch.cat(parts).cpu().numpy()
        return rows

    def _moved(self, images: Images) -> torch.Tensor:
        """A batch on the device. On CUDA padded to its bucket: few shapes, each of them warm."""
        rows = bucket(len(images), self._largest) if self._cuda else len(images)
        batch = torch.zeros((rows, *images.shape[1:]), dtype=torch.uint8, pin_memory=self._cuda)
        batch.numpy()[: len(images)] = images
        return batch.to(self.device, non_blocking=True)


def faster_precisions(device: str) -> tuple[str, ...]:
    """The reduced precisions that this very device has instructions for. device: "cpu" or "cuda:N"."""
    if kind_of(device) == "cpu":
        return (BFLOAT16,) if multiplies_bfloat16() else ()
    capability = torch.cuda.get_device_capability(device)
    return tuple(precision for precision, least in _TENSOR_CORES.items() if capability >= least)


class _Reduced(nn.Module):
    """A backbone in a reduced precision, from float32 pixels to float32 features.

    The weights of convolutions and linear layers are kept in it. What each operation is safe in, torch's own table
    decides: norms keep their statistics, and softmax its sums, in float32. Projection and unit length stay outside.
    """

    def __init__(self, backbone: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = backbone
        self._kind, self._dtype = kind_of(device), dtype
        for module in backbone.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(dtype)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) float32 → (B, dim) float32."""
        # No cache: it is for weights that are cast each time, and a recorded graph must not hold on to one.
        with torch.autocast(self._kind, self._dtype, cache_enabled=False):
            features: torch.Tensor = self.backbone(images)
        return features.float()


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Float32 as on a CPU: TF32 rounds to 10 bits, which moves images between clusters."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


@contextlib.contextmanager
def _translated(device: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{device} ran out of memory; free it of other work or use device cpu") from error
    except RuntimeError as error:
        raise InferenceError(f"the encoder failed on {device}") from error
