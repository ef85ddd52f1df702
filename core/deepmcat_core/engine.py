"""What runs an encoder: uint8 images in, unit embeddings out.

    Engine
    ├── TorchEngine   engine_torch.py   the reference; CPU and CUDA; alone in reduced precision (precision.py)
    └── OnnxEngine    engine_onnx.py    ONNX Runtime on a CPU: several times faster there, and without torch

An artifact has an ONNX engine only where the trainer measured it equal to the reference. This module imports neither
torch nor ONNX Runtime until an engine of that kind is opened.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from deepmcat_core import logs
from deepmcat_core.artifact import SELF_TEST_COSINE, Artifact
from deepmcat_core.errors import ConfigError, InferenceError, MissingExtra
from deepmcat_core.precision import AUTO, FLOAT32, choose_precision

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

LOG = logs.logger("core.engine")

ENGINES = ("auto", "torch", "onnx")
LARGEST_BATCH = {"cpu": 64, "cuda": 256}
"""More at once is not faster, and costs memory."""

UNIT_TOLERANCE = 1e-3

REDUCED_SELF_TEST_COSINE = 0.99
"""The gate has measured the rounding, the self-test's images included; what is left is to notice a device that errs."""


class Engine(Protocol):
    """Runs one encoder on one device. The embedding of an image does not depend on what else is in the batch."""

    @property
    def name(self) -> str:
        """What it is: torch, onnx."""

    @property
    def device(self) -> str:
        """Where it runs: cpu, cuda:0."""

    @property
    def precision(self) -> str:
        """How precisely it computes: float32, bfloat16, float16; empty where that is not known."""

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8, B ≥ 0 → (B, D) float32 unit vectors. Raises InferenceError."""

    def warm(self, batches: Sequence[int]) -> None:
        """Run once with each of these batch sizes, so that the first request waits for no set-up."""

    def close(self) -> None:
        """Free the device. Embedding after this raises InferenceError."""


@runtime_checkable
class SearchingEngine(Engine, Protocol):
    """One that can find the nearest clusters where it computed the embeddings, so that all comes back at once."""

    def search_among(self, centroids: Floats, n: int) -> None:
        """Find the `n` nearest of these too, from now on. centroids: (K, D) float32 unit vectors."""

    def embed_rows(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8, B ≥ 0 → rows (B, D + 2n) float32, as rows.py has them. Raises InferenceError."""


def open_engine(
    artifact: Artifact,
    *,
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
    precision: str = AUTO,
) -> Engine:
    """The engine of an artifact, after its self-test.

    device: as for `choose_device`. engine: "torch", "onnx", or "auto": ONNX Runtime on a CPU where the artifact has
    an ONNX engine and the precision is float32, else torch. threads: of a CPU engine, all the CPUs this process may use
    where None; torch's are those of the whole process. precision: as for `choose_precision`. Raises ConfigError,
    MissingExtra, ArtifactError, InferenceError.
    """
    chosen = choose_device(device)
    gates = artifact.manifest.precision_gates
    pays = _faster_precisions(chosen) if precision == AUTO and gates else ()
    precise = choose_precision(precision, chosen, gates, pays)
    opened: Engine
    if _choose_engine(engine, chosen, artifact, precise) == "onnx":
        from deepmcat_core.engine_onnx import OnnxEngine

        assert artifact.onnx is not None
        opened = OnnxEngine(artifact.onnx, threads=threads)
    else:
        opened = _open_torch(artifact, chosen, threads, precise)
    try:
        least = SELF_TEST_COSINE if precise == FLOAT32 else REDUCED_SELF_TEST_COSINE
        artifact.self_test.check(opened.embed(artifact.self_test.images), least)
    except BaseException:
        opened.close()
        raise
    return opened


def choose_device(device: str) -> str:
    """The device as engines name it, cpu or cuda:N. "auto" is the first GPU that torch can use, else the CPU.

    Raises ConfigError where CUDA is asked for and absent.
    """
    kind, colon, ordinal = device.partition(":")
    if device == "cpu":
        return "cpu"
    if device == "auto":
        return "cuda:0" if _driver_has_devices() and _torch_devices() else "cpu"
    if kind != "cuda" or (colon and not ordinal.isdecimal()):
        raise ConfigError(f"device is {device!r}; auto, cpu, cuda and cuda:N are devices")
    if not _installed("torch"):
        raise MissingExtra("torch", "gpu")
    if int(ordinal or 0) >= (count := _torch_devices()):
        raise ConfigError(f"device is {device!r}; torch finds {count} CUDA devices here: use auto or cpu")
    return f"cuda:{int(ordinal or 0)}"


def checked_images(images: npt.NDArray[Any]) -> Images:
    """`images`, where they are what an engine takes. Raises InferenceError."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise InferenceError(f"images are {images.dtype} {images.shape}; an encoder takes uint8 (B, 1, S, S)")
    return images


class OutOfMemory(InferenceError):
    """The batch was too large for the device; a smaller one may do."""


class BadEmbeddings(InferenceError):
    """Some embeddings of a batch are not finite unit vectors; the others are as good as ever.

    embeddings: (B, D), all of them. bad: (B,), which.
    """

    def __init__(self, embeddings: Floats, bad: npt.NDArray[np.bool_]) -> None:
        super().__init__("the encoder gave embeddings that are not finite unit vectors")
        self.embeddings = embeddings
        self.bad = bad

    def with_nan(self) -> Floats:
        """The embeddings, with NaN in the rows that are none."""
        return np.where(self.bad[:, None], np.float32(np.nan), self.embeddings)


def checked_embeddings(embeddings: Floats, shape: tuple[int, int]) -> Floats:
    """`embeddings`, where they are finite unit vectors of this shape. Raises InferenceError, BadEmbeddings."""
    if embeddings.shape != shape:
        raise InferenceError(f"the encoder gave embeddings of shape {embeddings.shape} instead of {shape}")
    off = np.abs(np.linalg.norm(embeddings, axis=1) - 1)
    good = off <= UNIT_TOLERANCE  # false for NaN too
    if not good.all():
        raise BadEmbeddings(embeddings, ~good)
    return embeddings


def batches(images: Images, largest: int) -> Iterator[Images]:
    """`images` in order, at most `largest` at a time."""
    for start in range(0, len(images), largest):
        yield images[start : start + largest]


def _choose_engine(engine: str, device: str, artifact: Artifact, precision: str) -> str:
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; {', '.join(ENGINES)} are engines")
    if engine == "onnx" and artifact.onnx is None:
        raise ConfigError("engine is 'onnx', and the artifact has no ONNX engine: use auto or torch")
    if engine == "onnx" and device != "cpu":
        raise ConfigError(f"engine is 'onnx', which runs on a CPU, and device is {device!r}: use torch or device cpu")
    if engine == "onnx" and precision != FLOAT32:
        raise ConfigError(f"engine is 'onnx', which runs in float32, and precision is {precision!r}: use torch or auto")
    if engine != "auto":
        return engine
    # A GPU install has torch and no ONNX Runtime, and may still be told to use its CPU.
    runnable = _installed("onnxruntime") or not _installed("torch")
    alike = device == "cpu" and precision == FLOAT32
    return "onnx" if alike and artifact.onnx is not None and runnable else "torch"


def _open_torch(artifact: Artifact, device: str, threads: int | None, precision: str) -> Engine:
    if not _installed("torch"):
        raise MissingExtra("torch", "trainer")
    import torch

    from deepmcat_core.encoder import build_encoder
    from deepmcat_core.engine_torch import TorchEngine, faster_precisions

    if precision != FLOAT32 and precision not in faster_precisions(device):
        logs.event(LOG, logging.WARNING, "no instructions for this precision", device=device, precision=precision)
    if threads is not None and device == "cpu":
        torch.set_num_threads(threads)
    encoder = build_encoder(artifact.manifest.encoder)
    encoder.load_weights(artifact.encoder_weights())
    return TorchEngine(encoder, device, size=artifact.manifest.preprocessing.size, precision=precision)


def _faster_precisions(device: str) -> tuple[str, ...]:
    """Of a GPU. A CPU's do not matter, and asking would import torch."""
    if device == "cpu":
        return ()
    from deepmcat_core.engine_torch import faster_precisions

    return faster_precisions(device)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _torch_devices() -> int:
    if not _installed("torch"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _driver_has_devices() -> bool:
    """Whether the NVIDIA driver has a device for us, asked without importing torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
