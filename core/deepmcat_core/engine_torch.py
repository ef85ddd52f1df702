"""The reference engine: torch, on a CPU or on CUDA, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import LARGEST_BATCH, Floats, Images, OutOfMemory, batches, checked_embeddings, checked_images
from deepmcat_core.errors import InferenceError
from deepmcat_core.preprocessing import Preprocessing


class TorchEngine:
    """Runs an encoder, which it takes over: moved to the device, channels last, in evaluation mode."""

    name = "torch"

    def __init__(self, encoder: Encoder, device: str = "cpu", *, size: int = Preprocessing().size) -> None:
        """device: "cpu" or "cuda:N". size: S of the images, for warming. Raises InferenceError."""
        self.device = device
        self.dim = encoder.dim
        self._size = size
        self._cuda = device.startswith("cuda")
        self._largest = LARGEST_BATCH["cuda" if self._cuda else "cpu"]
        with _translated(device):
            encoder.eval().to(device)
            self._encoder: Encoder | None = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8 → (B, D) float32 unit vectors, in batches of a bounded size. Raises InferenceError."""
        images = checked_images(images)
        if self._encoder is None:
            raise InferenceError("the engine is closed")
        if len(images) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        with _translated(self.device), torch.inference_mode(), _float32():
            parts = [self._encoder(self._moved(part))[: len(part)] for part in batches(images, self._largest)]
            embeddings: Floats = torch.cat(parts).float().cpu().numpy()
        return checked_embeddings(embeddings, (len(images), self.dim))

    def warm(self, batches: Sequence[int]) -> None:
        """Run once with each of these batch sizes."""
        for count in batches:
            self.embed(np.zeros((count, 1, self._size, self._size), dtype=np.uint8))

    def close(self) -> None:
        """Free the device."""
        self._encoder = None
        if self._cuda:
            torch.cuda.empty_cache()

    def _moved(self, images: Images) -> torch.Tensor:
        """A batch on the device. On CUDA padded to the next power of two: few shapes, each of them warm."""
        rows = min(1 << (len(images) - 1).bit_length(), self._largest) if self._cuda else len(images)
        batch = torch.zeros((rows, *images.shape[1:]), dtype=torch.uint8, pin_memory=self._cuda)
        batch.numpy()[: len(images)] = images
        return batch.to(self.device, non_blocking=True)


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
