"""The encoder in a Triton elsewhere: planes go there by the batch, embeddings come back; all else stays here.

Spoken is the Open Inference Protocol v2, by the messages of tritonclient (extra [triton]). Which version of the model
answers for an artifact is settled when the artifact is opened: the newest that Triton has loaded and that passes the
artifact's self-test. It is asked for by its number from then on, so an artifact keeps its encoder while Triton loads
another, and the next artifact finds its own beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from deepmcat_core.artifact import Artifact
from deepmcat_core.engine import LARGEST_BATCH, Floats, Images, batches, checked_embeddings, checked_images
from deepmcat_core.errors import ArtifactError, ArtifactSelfTest, InferenceError
from deepmcat_server.addresses import RemoteEncoder
from deepmcat_server.errors import EncoderUnavailable

_UNBOUNDED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))  # a batch is bounded
_MOMENTARY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}


class TritonEngine:
    """One version of a model that maps uint8 (B, 1, S, S) to float32 (B, D)."""

    name = "triton"
    device = "remote"
    precision = ""

    def __init__(self, model: Model, version: str, *, size: int, dim: int) -> None:
        """model: taken over. size, dim: S and D, which the artifact knows."""
        self.dim = dim
        self._size = size
        self._model: Model | None = model
        self._version = version

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8 → (B, D) float32 unit vectors. Raises InferenceError, EncoderUnavailable."""
        images = checked_images(images)
        if self._model is None:
            raise InferenceError("the engine is closed")
        embeddings = np.empty((len(images), self.dim), dtype=np.float32)
        done = 0
        for part in batches(images, self._model.largest_batch):
            embeddings[done : done + len(part)] = self._model.infer(part, self._version, self.dim)
            done += len(part)
        return checked_embeddings(embeddings, (len(images), self.dim))

    def warm(self, batches: Sequence[int]) -> None:
        """Run once with each of these batch sizes."""
        for count in batches:
            self.embed(np.zeros((count, 1, self._size, self._size), dtype=np.uint8))

    def close(self) -> None:
        """Close the connection."""
        if self._model is not None:
            self._model.close()
        self._model = None


class Model:
    """A model that a Triton serves, over a connection of its own. Raises EncoderUnavailable, InferenceError."""

    def __init__(self, remote: RemoteEncoder, *, timeout_s: float) -> None:
        """timeout_s: of each call."""
        self._name = remote.model
        self._timeout_s = timeout_s
        self._channel = _channel(remote)
        self._stub: Any = oip_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            metadata = self._call(self._stub.ModelMetadata, oip.ModelMetadataRequest(name=self._name))
            described = self._call(self._stub.ModelConfig, oip.ModelConfigRequest(name=self._name))
            tensors = [(tensor.datatype, len(tensor.shape)) for tensor in (*metadata.inputs, *metadata.outputs)]
            if tensors not in ([("UINT8", 3), ("FP32", 2)], [("UINT8", 4), ("FP32", 2)]):
                raise InferenceError("the model in Triton does not map UINT8 [n, S, S] or [n, 1, S, S] to FP32 [n, D]")
        except BaseException:
            self.close()
            raise
        self._has_channel = len(metadata.inputs[0].shape) == 4
        self._input, self._output = metadata.inputs[0].name, metadata.outputs[0].name
        self.largest_batch = min(described.config.max_batch_size or LARGEST_BATCH["cuda"], LARGEST_BATCH["cuda"])
        """Images; Triton refuses more."""
        self.versions: list[str] = sorted(metadata.versions, key=int)
        """Those that are loaded, the newest last."""

    def infer(self, images: Images, version: str, dim: int) -> Floats:
        """(B, 1, S, S) uint8 → (B, dim) float32."""
        shape = images.shape if self._has_channel else (len(images), *images.shape[2:])
        tensor = oip.ModelInferRequest.InferInputTensor(name=self._input, datatype="UINT8", shape=shape)
        wanted = oip.ModelInferRequest.InferRequestedOutputTensor(name=self._output)
        request = oip.ModelInferRequest(
            model_name=self._name,
            model_version=version,
            inputs=[tensor],
            outputs=[wanted],
            raw_input_contents=[np.ascontiguousarray(images).tobytes()],
        )
        response = self._call(self._stub.ModelInfer, request)
        contents = response.raw_output_contents
        values = np.frombuffer(contents[0] if len(contents) == 1 else b"", dtype="<f4")
        if values.size != len(images) * dim:
            raise InferenceError(f"Triton gave {values.size} numbers for {len(images)} embeddings of {dim}")
        return values.reshape(len(images), dim)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            if code in _MOMENTARY:
                raise EncoderUnavailable(f"the encoder's Triton answered {code.name}; try again") from error
            raise InferenceError(f"the encoder's Triton answered {code.name}") from error


def open_triton(artifact: Artifact, *, remote: RemoteEncoder, timeout_s: float) -> TritonEngine:
    """The newest loaded version of the model that is this artifact's encoder, by its self-test.

    timeout_s: of a batch. Raises ArtifactSelfTest, EncoderUnavailable, InferenceError.
    """
    size, dim = artifact.manifest.preprocessing.size, artifact.manifest.dim
    model = Model(remote, timeout_s=timeout_s)
    failed: ArtifactError = ArtifactSelfTest("the encoder's Triton has no version of the model loaded")
    try:
        for version in reversed(model.versions):
            engine = TritonEngine(model, version, size=size, dim=dim)
            try:
                artifact.self_test.check(engine.embed(artifact.self_test.images))
            except ArtifactSelfTest as error:
                failed = error
            else:
                return engine
        raise failed
    except BaseException:
        model.close()
        raise


def _channel(remote: RemoteEncoder) -> grpc.Channel:
    if remote.tls:
        return grpc.secure_channel(remote.address, grpc.ssl_channel_credentials(), options=_UNBOUNDED)
    return grpc.insecure_channel(remote.address, options=_UNBOUNDED)
