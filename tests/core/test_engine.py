"""Engines: the same image, the same embedding, whatever the batch; errors of ours; no torch where none is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.core.encoders import SIZE, SPEC, images, written

from deepmcat_core.artifact import Draft, SelfTest
from deepmcat_core.encoder import Encoder, build_encoder
from deepmcat_core.engine import LARGEST_BATCH, Engine, choose_device, open_engine
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.errors import ArtifactDamaged, ArtifactSelfTest, ConfigError, InferenceError, MissingExtra


@pytest.fixture(name="engines", scope="module")
def engines_fixture(encoder: Encoder, onnx: bytes) -> dict[str, Engine]:
    return {"torch": TorchEngine(encoder, size=SIZE), "onnx": OnnxEngine(onnx, threads=1)}


@pytest.fixture(name="trained")
def trained_fixture(draft: Draft, encoder: Encoder, engines: dict[str, Engine], onnx: bytes) -> Draft:
    """A draft with a real encoder and its ONNX engine."""
    recorded = SelfTest(images=draft.self_test.images, embeddings=engines["torch"].embed(draft.self_test.images))
    return dataclasses.replace(
        draft,
        manifest=dataclasses.replace(draft.manifest, encoder=SPEC),
        encoder=encoder.weights(),
        self_test=recorded,
        onnx=onnx,
    )


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_an_embedding_does_not_depend_on_the_batch(engines: dict[str, Engine], name: str) -> None:
    """An image has the same embedding alone, among others, and on either side of where a batch is split."""
    engine, batch = engines[name], images(LARGEST_BATCH["cpu"] + 3)

    together = engine.embed(batch)

    assert (together.shape, together.dtype, engine.dim) == ((len(batch), 16), np.float32, 16)
    for index in (0, 1, 63, 64, 66):
        alone = engine.embed(batch[index : index + 1])[0]
        assert 1 - float(alone @ together[index]) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_edges_of_a_batch(engines: dict[str, Engine], name: str) -> None:
    """No images give no embeddings; read-only and strided arrays are taken; engines warm with any sizes."""
    engine, batch = engines[name], images(4)
    batch.flags.writeable = False

    assert engine.embed(images(0)).shape == (0, 16)
    np.testing.assert_allclose(engine.embed(batch[::-1]), engine.embed(batch)[::-1], atol=1e-5)
    engine.warm([1, 3])


@pytest.mark.parametrize("name", ["torch", "onnx"])
@pytest.mark.parametrize("shape", [(2, 3, SIZE, SIZE), (SIZE, SIZE), (1, 1, SIZE, 8)])
def test_other_arrays_are_refused(engines: dict[str, Engine], name: str, shape: tuple[int, ...]) -> None:
    """Anything but uint8 (B, 1, S, S) is an error that says what is needed."""
    with pytest.raises(InferenceError, match="uint8"):
        engines[name].embed(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(InferenceError, match="float32"):
        engines[name].embed(np.zeros((1, 1, SIZE, SIZE), dtype=np.float32))  # type: ignore[arg-type]


def test_nan_is_never_an_answer() -> None:
    """An encoder that gives NaN gives an error, not an assignment."""
    encoder = build_encoder(SPEC)
    torch.nn.init.constant_(encoder.projection.bias, float("nan"))

    with pytest.raises(InferenceError, match="finite"):
        TorchEngine(encoder).embed(images(2))


def test_a_failing_network_is_an_inference_error() -> None:
    """What torch raises, memory that is not there included, becomes an InferenceError."""

    class Failing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**60)

    encoder = build_encoder(SPEC)
    encoder.backbone = Failing()  # type: ignore[assignment]

    with pytest.raises(InferenceError, match="cpu"):
        TorchEngine(encoder).embed(images(1))


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_closed_engines_say_so(onnx: bytes, name: str) -> None:
    """A closed engine raises InferenceError, and closing twice is fine."""
    engine: Engine = OnnxEngine(onnx) if name == "onnx" else TorchEngine(build_encoder(SPEC))
    with contextlib.closing(engine):
        engine.embed(images(1))
    engine.close()

    with pytest.raises(InferenceError, match="closed"):
        engine.embed(images(1))


def test_an_onnx_engine_has_one_size(engines: dict[str, Engine]) -> None:
    """Images of another side than the file was exported for are refused with both sides named."""
    with pytest.raises(InferenceError, match=r"16 px .* 32"):
        engines["onnx"].embed(np.zeros((1, 1, 16, 16), dtype=np.uint8))


def test_damaged_onnx_files(onnx: bytes, tmp_path: Path) -> None:
    """Bytes that are no ONNX file are damage, from memory and from disk."""
    (tmp_path / "encoder.onnx").write_bytes(onnx[: len(onnx) // 2])

    for source in (b"not onnx", tmp_path / "encoder.onnx"):
        with pytest.raises(ArtifactDamaged, match="ONNX"):
            OnnxEngine(source)


def test_auto_prefers_onnx_on_a_cpu(tmp_path: Path, trained: Draft) -> None:
    """On a CPU an artifact's ONNX engine is opened, on request torch, and both embed equally after the self-test."""
    artifact = written(tmp_path, trained)

    auto = open_engine(artifact, device="cpu")
    reference = open_engine(artifact, device="cpu", engine="torch", threads=torch.get_num_threads())

    assert (auto.name, reference.name) == ("onnx", "torch")
    np.testing.assert_allclose(auto.embed(images(3)), reference.embed(images(3)), atol=1e-5)


def test_torch_where_there_is_no_onnx(tmp_path: Path, trained: Draft) -> None:
    """An artifact without an ONNX engine is run by torch, and asking for ONNX is an error with the way out."""
    artifact = written(tmp_path, dataclasses.replace(trained, onnx=None))

    assert open_engine(artifact, device="cpu").name == "torch"
    with pytest.raises(ConfigError, match="auto or torch"):
        open_engine(artifact, device="cpu", engine="onnx")
    with pytest.raises(ConfigError, match="tensorrt"):
        open_engine(artifact, device="cpu", engine="tensorrt")


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_the_self_test_guards_every_engine(tmp_path: Path, trained: Draft, name: str) -> None:
    """An engine that does not compute what was recorded is not opened."""
    other = dataclasses.replace(trained.self_test, embeddings=trained.self_test.embeddings[::-1])
    artifact = written(tmp_path, dataclasses.replace(trained, self_test=other))

    with pytest.raises(ArtifactSelfTest, match="self-test"):
        open_engine(artifact, device="cpu", engine=name)


def test_an_onnx_engine_never_imports_torch(tmp_path: Path, trained: Draft) -> None:
    """A CPU server with an ONNX engine needs no torch: the whole path to embeddings leaves it unimported."""
    written(tmp_path, trained)
    program = (
        "import sys, numpy as np\n"
        "from deepmcat_core.artifact import Artifact\n"
        "from deepmcat_core.engine import open_engine\n"
        f"engine = open_engine(Artifact.load({str(tmp_path / 'a')!r}), device='cpu')\n"
        f"assert engine.embed(np.zeros((2, 1, {SIZE}, {SIZE}), dtype=np.uint8)).shape == (2, 16)\n"
        "assert engine.name == 'onnx'\n"
        "assert 'torch' not in sys.modules and 'deepmcat_core.encoder' not in sys.modules\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr


def test_missing_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Draft) -> None:
    """Without ONNX Runtime torch runs on the CPU; without either, the message has the command for a CPU server."""
    artifact = written(tmp_path, trained)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_engine(artifact, device="cpu").name == "torch"

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'deepmcat\[cpu\]'"):
        open_engine(artifact, device="cpu")
    with pytest.raises(MissingExtra, match=r"pip install 'deepmcat\[trainer\]'"):
        open_engine(artifact, device="cpu", engine="torch")
    with pytest.raises(MissingExtra, match=r"pip install 'deepmcat\[gpu\]'"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_devices_that_are_none(device: str) -> None:
    """A device that cannot be is refused with those that can."""
    with pytest.raises(ConfigError, match="cuda:N"):
        choose_device(device)


def test_cuda_where_there_is_none() -> None:
    """Asking for a GPU that is not there is one sentence; auto takes what there is."""
    with pytest.raises(ConfigError, match="CUDA devices"):
        choose_device("cuda:99")

    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
def test_cuda_embeds_as_the_cpu_does(encoder: Encoder, engines: dict[str, Engine]) -> None:
    """On CUDA embeddings equal the CPU's to cosine .99999, in padded and in split batches, and settings are kept."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    same = build_encoder(SPEC)
    same.load_weights(encoder.weights())
    engine = TorchEngine(same, "cuda:0", size=SIZE)
    before = torch.backends.cudnn.conv.fp32_precision

    for count in (1, 3, 259):
        cosines = np.einsum("bd,bd->b", engine.embed(images(count)), engines["torch"].embed(images(count)))
        assert cosines.min() > 0.99999

    assert torch.backends.cudnn.conv.fp32_precision == before
    engine.close()
