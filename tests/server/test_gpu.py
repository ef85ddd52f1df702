"""Serving on a GPU: the server's batches on CUDA, and answers that are the CPU's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft, SelfTest
from deepmcat_core.manifest import EncoderSpec

SPEC = EncoderSpec(name="small-vgg-sobel", options={"projection": {"kind": "linear", "in": 256, "out": 16}})


@pytest.mark.gpu
async def test_cuda_serves_what_the_cpu_computes(serving, draft: Draft, pngs, request_of, tmp_path: Path):
    """A torch engine on CUDA is warmed, serves batches of any size, and answers with the CPU's embeddings."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from deepmcat_core.encoder import build_encoder
    from deepmcat_core.engine import open_engine
    from deepmcat_core.engine_torch import TorchEngine

    torch.manual_seed(0)
    encoder = build_encoder(SPEC)
    weights = encoder.weights()
    images = draft.self_test.images
    expected = TorchEngine(encoder, "cpu", size=images.shape[-1]).embed(images)
    manifest = dataclasses.replace(draft.manifest, encoder=SPEC)
    recorded = SelfTest(images=images, embeddings=expected)
    trained = dataclasses.replace(draft, manifest=manifest, encoder=weights, centroids=expected, self_test=recorded)
    artifacts.write(tmp_path / "trained", trained)
    artifact = Artifact.load(tmp_path / "trained")
    engine = open_engine(artifact, device="cuda", precision="float32")

    async with serving(artifact=artifact, engine=engine, max_batch=6) as served:
        messages = [
            pb.CategorizeStreamRequest(item=request_of(pngs[i % 4], str(i), want_embedding=True)) for i in range(50)
        ]
        answers = [response async for response in served.stub.CategorizeStream(iter(messages))]
        described = await served.stub.GetArtifact(pb.GetArtifactRequest())
    engine.close()

    assert [a.categorization.assignment.cluster_id for a in answers] == [i % 4 for i in range(50)]
    vectors = np.stack([np.frombuffer(a.categorization.embedding.data, "<f4") for a in answers])
    assert np.einsum("bd,bd->b", vectors, expected[np.arange(50) % 4]).min() > 0.9999
    assert (described.engine, described.device) == ("torch", "cuda:0")
