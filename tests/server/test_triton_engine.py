"""The encoder in a Triton: a stand-in for it over a real channel, that a test can stop and change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.artifact import Artifact
from deepmcat_core.engine import Engine
from deepmcat_core.errors import ArtifactSelfTest, ConfigError, InferenceError
from deepmcat_server.addresses import parse_encoder
from deepmcat_server.config import Settings, load
from deepmcat_server.errors import EncoderUnavailable
from deepmcat_server.opening import engine_opener

oip = pytest.importorskip("tritonclient.grpc.service_pb2")
oip_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")
from deepmcat_server.triton_engine import open_triton  # noqa: E402  # needs tritonclient

MODEL = "encoder"
SIZE, D = 32, 16  # of the tiny artifact


class Triton(oip_grpc.GRPCInferenceServiceServicer):
    """As much of a Triton as is called. versions: an engine each, None for one that computes something else."""

    def __init__(self, versions: dict[str, Engine | None], max_batch: int = 2) -> None:
        self.versions = versions
        self.max_batch = max_batch
        self.seen: list[tuple[str, int]] = []
        self.failure: grpc.StatusCode | None = None
        self.output = "FP32"
        self.shape = [-1, 1, SIZE, SIZE]

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._known(request.name, context)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=MODEL,
            versions=list(self.versions),
            inputs=[tensor(name="images", datatype="UINT8", shape=self.shape)],
            outputs=[tensor(name="embeddings", datatype=self.output, shape=[-1, D])],
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = oip.ModelConfigResponse()
        response.config.max_batch_size = self.max_batch
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._known(request.model_name, context)
        if self.failure is not None:
            context.abort(self.failure, "a text of the model's own")
        shape = tuple(request.inputs[0].shape)
        if (
            shape[0] > self.max_batch
            or shape[1:] != tuple(self.shape[1:])
            or request.model_version not in self.versions
        ):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "")
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(-1, 1, SIZE, SIZE)
        self.seen.append((request.model_version, len(images)))
        engine = self.versions[request.model_version]
        embeddings = np.eye(D, dtype="f4")[np.zeros(len(images), int)] if engine is None else engine.embed(images)
        return oip.ModelInferResponse(
            model_name=MODEL, model_version=request.model_version, raw_output_contents=[embeddings.tobytes()]
        )

    def _known(self, name: str, context: Any) -> None:
        if name != MODEL:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {name}")


@contextlib.contextmanager
def listening(servicer: Triton) -> Iterator[str]:
    """The address that it listens on, as --encoder takes it."""
    server = grpc.server(ThreadPoolExecutor(2))
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"triton://127.0.0.1:{port}/{MODEL}"
    finally:
        server.stop(0).wait()


def opened(artifact: Artifact, address: str) -> Any:
    return open_triton(artifact, remote=parse_encoder(address), timeout_s=20)


@pytest.mark.parametrize("shape", [[-1, 1, SIZE, SIZE], [-1, SIZE, SIZE]])
def test_embeddings_are_those_of_the_encoder(artifact, engine, shape):
    """Batches are cut to what the model takes, and rows come back in order, from none to several batches."""
    images = np.random.default_rng(0).integers(0, 256, (5, 1, SIZE, SIZE), dtype=np.uint8)
    triton = Triton({"1": engine}, max_batch=2)
    triton.shape = shape
    with listening(triton) as address:
        remote = opened(artifact, address)
        triton.seen.clear()
        np.testing.assert_allclose(remote.embed(images), engine.embed(images), atol=1e-6)
        assert [count for _, count in triton.seen] == [2, 2, 1]
        assert remote.embed(images[:0]).shape == (0, remote.dim)
        remote.close()
        with pytest.raises(InferenceError, match="closed"):
            remote.embed(images)


def test_the_newest_version_that_is_the_artifacts_own_is_taken(artifact, engine):
    """Another encoder under a newer number is passed over by its self-test, and 10 is newer than 9."""
    triton = Triton({"2": engine, "9": engine, "10": engine, "11": None})
    with listening(triton) as address:
        remote = opened(artifact, address)
        triton.seen.clear()
        remote.warm([1])
    assert triton.seen == [("10", 1)]


def test_another_encoder_is_refused(artifact, engine):
    """A model that computes something else, or that is not loaded, is no encoder of this artifact."""
    for versions in ({"1": None}, {}):
        with listening(Triton(versions)) as address, pytest.raises(ArtifactSelfTest):
            opened(artifact, address)


def test_what_is_no_encoder_is_refused(artifact, engine):
    """A model of other types and a model that there is none of get a sentence without what Triton said."""
    triton = Triton({"1": engine})
    with listening(triton) as address:
        with pytest.raises(InferenceError, match=r"answered NOT_FOUND$"):
            opened(artifact, address + "s")
        triton.output = "FP16"
        with pytest.raises(InferenceError, match="does not map UINT8"):
            opened(artifact, address)


def test_nobody_there_is_unavailable(artifact):
    """Where nobody listens the start fails with a sentence."""
    with pytest.raises(EncoderUnavailable, match="UNAVAILABLE"):
        opened(artifact, "triton://127.0.0.1:1/encoder")


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1:8001/m", "http://h:1/m", "triton://h:1", "triton://h/m", "triton://h:1/a/b", "triton://h:1/m?x"],
)
def test_an_address_is_whole_or_refused(text):
    """A scheme, a host, a port and a model, and nothing else."""
    with pytest.raises(ConfigError, match="triton://HOST:PORT/MODEL"):
        load(flags={"encoder": text})
    assert parse_encoder("tritons://[::1]:8001/m") == ("[::1]:8001", "m", True)


async def test_a_server_answers_through_it(artifact, engine, serving, pngs, request_of):
    """An image gets the answer that the artifact's own engine gives; an outage is UNAVAILABLE, and ends."""
    triton = Triton({"1": engine})
    with listening(triton) as address:
        opener = engine_opener(Settings(encoder=address))
        remote = await asyncio.to_thread(opener, artifact)
        async with serving(engine=remote) as served:
            request = request_of(pngs[2])
            there = await served.stub.Categorize(request)
            triton.failure = grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.stub.Categorize(request)
            triton.failure = None
            assert (await served.stub.Categorize(request)) == there
            described = await served.stub.GetArtifact(pb.GetArtifactRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "model's own" not in str(caught.value.details())
    assert (described.engine, described.device, described.precision) == ("triton", "remote", "")
    async with serving() as served:
        here = await served.stub.Categorize(request)
    assert here == there
