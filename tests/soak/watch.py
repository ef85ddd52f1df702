"""What the servers say of themselves, all the time: health is never red, counters never go back."""

from __future__ import annotations

import asyncio
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from .replica import Replica
from .scene import Scene

LOOK_S, SCRAPE_S = 0.5, 3.0
ANSWER_S = 20  # of a probe, on a busy machine
ROUNDING = 1e-6
GAUGES = (
    "deepmcat_inflight_images", "deepmcat_inflight_bytes", "deepmcat_inflight_frames", "deepmcat_queue_depth",
    "deepmcat_decode_queue_depth",
)  # fmt: skip
BUGS = ("internal", "inference_failed")
"""Results of images that nothing that is done here excuses."""


async def watch_health(scene: Scene, replica: Replica) -> None:
    """SERVING, alive and ready, whenever the replica is up and nobody has told it to end."""
    while await scene.rest(LOOK_S):
        turns = replica.turns
        if replica.state != "up":
            continue
        try:
            said = await _health(replica)
        except (OSError, grpc.aio.AioRpcError, TimeoutError) as error:
            said = {repr(error)}
        if said != {"SERVING", "ok"} and turns == replica.turns:
            scene.ledger.breaks("health", replica.name, str(sorted(said)))
        scene.ledger.happens("looks at health")


async def watch_metrics(scene: Scene, replica: Replica) -> None:
    """Counters of a process never go back, and no image is an internal error."""
    turns, before = -1, {}
    while await scene.rest(SCRAPE_S):
        if replica.state != "up":
            continue
        if turns != replica.turns:
            turns, before = replica.turns, {}
        try:
            page = await scraped(replica)
        except OSError:  # the health watch says so
            continue
        for name, value in page.items():
            if _counts(name) and value < before.get(name, 0.0) - ROUNDING:
                scene.ledger.breaks("metrics", replica.name, f"{name} went from {before[name]} back to {value}")
        for bug in BUGS:
            name = f'deepmcat_images_total{{result="{bug}"}}'
            if page.get(name, 0) > before.get(name, 0):
                scene.ledger.breaks("internal error", replica.name, f"{name} is {page[name]}: {replica.last_words}")
        before = page


async def scraped(replica: Replica) -> dict[str, float]:
    """The samples of the metrics page, by name and labels. Raises OSError where the replica is down."""
    page = await asyncio.to_thread(_get, replica, "metrics")
    return {
        _name(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def idle_within(replica: Replica, seconds: float) -> dict[str, float]:
    """The gauges of what is inside that are not 0 although nobody has sent anything for so long."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        page = await scraped(replica)
        left = {name: page[name] for name in GAUGES if page[name]}
        if not left or asyncio.get_running_loop().time() > deadline:
            return left
        await asyncio.sleep(0.3)


def _counts(name: str) -> bool:
    return name.partition("{")[0].endswith(("_total", "_count", "_bucket"))


def _name(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


async def _health(replica: Replica) -> set[str]:
    async with grpc.aio.insecure_channel(replica.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_S)
    probes = [await asyncio.to_thread(_get, replica, probe) for probe in ("livez", "readyz")]
    return {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), *(said.strip() for said in probes)}


def _get(replica: Replica, path: str) -> str:
    with urllib.request.urlopen(f"http://{replica.admin}/{path}", timeout=ANSWER_S) as page:
        return page.read().decode()
