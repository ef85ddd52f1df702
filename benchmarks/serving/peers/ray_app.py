"""Ray Serve: one replica that batches, behind Ray's gRPC proxy with the Open Inference Protocol's servicer.

python ray_app.py PORT BATCH
"""

from __future__ import annotations

import sys
import time

import numpy as np
import ray
import work
from ray import serve
from ray.serve.config import gRPCOptions
from tritonclient.grpc import service_pb2 as oip

PORT, BATCH = int(sys.argv[1]), int(sys.argv[2])
ADD = "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


@serve.deployment(max_ongoing_requests=2 * BATCH, max_queued_requests=64, ray_actor_options={"num_cpus": 0})
class Embedding:
    def __init__(self) -> None:
        self._work = work.from_environment()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)
    async def _embed(self, planes: list) -> list:
        return list(self._work(np.stack(planes)))

    async def ModelInfer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:  # noqa: N802
        shape = request.inputs[0].shape
        row = await self._embed(np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(*shape[1:]))
        response = oip.ModelInferResponse(model_name=request.model_name, raw_output_contents=[row.tobytes()])
        response.outputs.add(name="embedding", datatype="FP32", shape=[1, len(row)])
        return response


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(grpc_options=gRPCOptions(port=PORT, grpc_servicer_functions=[ADD]))
    serve.run(Embedding.bind())
    while True:
        time.sleep(60)
