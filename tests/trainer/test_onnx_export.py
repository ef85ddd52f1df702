"""The ONNX export: equal to the reference, self-contained, and kept out where it is not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from deepmcat_core.encoder import Encoder, build_encoder
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.onnx_export import MIN_COSINE, NotExportable, equality_gate, export_onnx

SIZE = 32


class Recorded:
    """An engine that knows its answers."""

    name, device, precision = "recorded", "cpu", "float32"

    def __init__(self, embeddings: Sequence[Sequence[float]]) -> None:
        vectors = np.asarray(embeddings, dtype=np.float32)
        self.embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.dim = vectors.shape[1]

    def embed(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self.embeddings[: len(images)]

    def warm(self, batches: Sequence[int]) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to close."""


def images(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8)


def encoders() -> list[EncoderSpec]:
    config = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"intermediate_size": 64, "image_size": 24, "patch_size": 8}
    hf = {"config": config, "mean": [0.5] * 3, "std": [0.5] * 3, "size": 24, "pooling": "pooler", "dim": 32}
    views = {"kind": "views", "in": [96, 160], "out": [8, 12]}
    edges = {"kind": "views", "in": [1024, 512, 128], "out": [16, 8, 8]}
    return [
        EncoderSpec(name="small-vgg-sobel", options={"projection": {"kind": "linear", "in": 256, "out": 16}}),
        EncoderSpec(name="efficientnet-lite0"),
        EncoderSpec(name="efficientnet-lite0", options={"pool": "grid2", "stages": [2, 3], "projection": views}),
        EncoderSpec(name="gradients", options={"projection": edges}),
        EncoderSpec(name="hf", options=hf),
    ]


@pytest.mark.parametrize("spec", encoders(), ids=lambda spec: spec.name)
def test_the_export_equals_the_reference(spec: EncoderSpec) -> None:
    """Each kind of encoder exports without a warning and passes the gate for batches of any size."""
    torch.manual_seed(0)
    encoder = build_encoder(spec)
    reference = TorchEngine(encoder, size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        candidate = OnnxEngine(export_onnx(encoder, SIZE))

    gate = equality_gate(reference, candidate, images(70), reference.embed(images(5)))

    assert gate.passed
    assert gate.images == 70
    assert gate.min_cosine >= MIN_COSINE
    assert json.loads(json.dumps(gate.to_json()))["passed"] is True


def test_the_file_is_plain(capfd: pytest.CaptureFixture[str]) -> None:
    """The file has standard operators only, a free batch size, all weights inside and no note of where it was made."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel")).train()

    content = export_onnx(encoder, SIZE)

    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "B"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert b".py" not in content
    assert encoder.training, "the caller's encoder is left as it was"
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_exported_says_so() -> None:
    """A network with a step that depends on its data is refused with an error of ours."""

    class Uncertain(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :256] * (1 if images.sum() > 0 else 2)

    encoder: Encoder = build_encoder(EncoderSpec(name="small-vgg-sobel"))
    encoder.backbone = Uncertain()  # type: ignore[assignment]

    with pytest.raises(NotExportable, match="small-vgg-sobel"):
        export_onnx(encoder, SIZE)


def test_a_turned_embedding_fails_the_gate() -> None:
    """One embedding below the cosine fails the gate, even where every cluster is the same."""
    reference = Recorded([[1, 0], [0, 1]])
    centroids = np.eye(2, dtype=np.float32)

    gate = equality_gate(reference, Recorded([[1, 0.01], [0, 1]]), images(2), centroids)

    assert (gate.passed, gate.cluster_agreement_beyond_margin) == (False, 1.0)
    assert gate.min_cosine == pytest.approx(1 - 5e-5, abs=1e-6)


def test_another_cluster_fails_the_gate_beyond_the_margin_only() -> None:
    """A change of cluster fails the gate where the two nearest were clearly apart, and not where they were tied."""
    angle = 1e-3
    centroids = np.asarray([[1, 0], [np.cos(0.5), np.sin(0.5)]], dtype=np.float32)

    def at(turn: float) -> Recorded:
        return Recorded([[np.cos(0.25 + turn), np.sin(0.25 + turn)]])

    apart = equality_gate(at(-angle), at(angle), images(1), centroids)
    tied = equality_gate(at(-angle / 10), at(angle / 10), images(1), centroids)

    assert (apart.passed, apart.cluster_agreement_beyond_margin) == (False, 0.0)
    assert apart.min_cosine > MIN_COSINE
    assert tied.passed


def test_the_gate_works_with_one_cluster() -> None:
    """Where there is one cluster, agreement is certain and the cosine decides."""
    engine = Recorded([[1, 0]])

    assert equality_gate(engine, engine, images(1), np.eye(2, dtype=np.float32)[:1]).passed
    with pytest.raises(ValueError, match="needs images"):
        equality_gate(engine, engine, images(0), np.eye(2, dtype=np.float32))
