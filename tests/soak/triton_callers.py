"""Good callers that speak the Open Inference Protocol, with Triton's own client."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from deepmcat_core.categorizer import Categorization

from .oracle import DISTANCE, Asked
from .scene import Menu, Scene

WHO = "triton calls"
TRIES = 60
AGAIN = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")  # the last: the server stopped just then


async def call(scene: Scene, number: int) -> None:
    """Requests of one to four files."""
    from tritonclient.utils import InferenceServerException

    rng = scene.rng(f"{WHO} {number}")
    menu = Menu(scene, rng)
    while await scene.rest(rng.uniform(0, 0.5)):
        images = [menu.file() for _ in range(rng.randrange(1, 5))]
        images = [Asked(specimen=asked.specimen) for asked in images]
        scene.ledger.sends(WHO, len(images))
        for tried in range(TRIES):
            alive = [replica for replica in scene.replicas if replica.state == "up"] or scene.replicas
            try:
                result = await _infer(rng.choice(alive).address, images)
            except InferenceServerException as error:
                if any(code in str(error.status()) for code in AGAIN) and tried < TRIES - 1:
                    scene.ledger.again[f"triton {error.status()}"] += 1
                    await asyncio.sleep(rng.uniform(0.1, 0.6))
                    continue
                scene.ledger.outcomes[WHO]["error"] += len(images)
                scene.ledger.breaks("lost image", WHO, f"{len(images)} images: {error}")
            else:
                _judge(scene, images, result)
            break


async def _infer(address: str, images: list[Asked]) -> Any:
    from tritonclient.grpc import InferInput, aio

    content = np.array([asked.specimen.source for asked in images], np.object_)
    async with aio.InferenceServerClient(address) as client:
        tensor = InferInput("image", [len(images)], "BYTES").set_data_from_numpy(content)
        return await client.infer("deepmcat", [tensor], client_timeout=60)


def _judge(scene: Scene, images: list[Asked], result: Any) -> None:
    response = result.get_response()
    artifact_id, oldest = response.model_version, response.parameters["catalog_version"].int64_param
    for row, asked in enumerate(images):
        scene.ledger.outcomes[WHO]["ok"] += 1
        # The version is the oldest of those that named the images of a request, which can take long.
        versions = [oldest] if len(images) == 1 else scene.oracle.versions_from(artifact_id, oldest)
        expected = [scene.oracle.expected(asked, artifact_id, version) for version in versions]
        if not any(isinstance(each, Categorization) and _is(result, row, each) for each in expected):
            what = f"{asked.specimen.name}: {[result.as_numpy(n)[row] for n in ('cluster', 'category', 'distance')]}"
            scene.ledger.breaks("wrong answer", WHO, f"{what}, artifact {artifact_id[:12]}, catalog {oldest}")


def _is(result: Any, row: int, expected: Categorization) -> bool:
    """Whether a row of a result says what the library does."""
    a = expected.assignment
    said = tuple(result.as_numpy(name)[row] for name in ("cluster", "category_id", "category", "outlier"))
    meant = (a.cluster_id, a.category_id.encode(), a.category.encode(), bool(a.outlier))
    return said == meant and abs(float(result.as_numpy("distance")[row]) - a.distance) <= DISTANCE
