"""MLServer: a runtime of one's own, whose adaptive batching makes one request of several."""

from __future__ import annotations

import work
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        self._work = work.from_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        planes = NumpyCodec.decode_input(payload.inputs[0])
        embeddings = self._work(planes)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("embedding", embeddings)])
