"""What is done to the servers while they answer: workers killed and stopped, artifacts and names changed, restarts.

The first replica is never restarted, so that its memory can be watched for the whole run; the second is, again and
again, and callers have both addresses.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import grpc

from deepmcat.v1 import admin_pb2 as pb
from deepmcat.v1 import admin_pb2_grpc as pb_grpc

from .replica import Replica
from .scene import Scene
from .shelf import DAMAGED, Shelf
from .watch import scraped

KILL_S, STOP_S, SWAP_S, RENAME_S, RESTART_S, ROLL_BACK_S = 4, 12, 12, 9, 45, 60  # on average, between two of a kind
FOLLOW_S = 60  # how long a server may take to follow, on a busy machine
SHARE_DAMAGED = 0.3


async def kill_workers(scene: Scene) -> None:
    """SIGKILL to any worker, be it busy, idle or on its way up."""
    rng = scene.rng("kills")
    while await scene.rest(rng.expovariate(1 / KILL_S)):
        if workers := [pid for replica in scene.replicas if replica.state == "up" for pid in replica.workers]:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                scene.ledger.happens("workers killed")


async def stop_workers(scene: Scene) -> None:
    """SIGSTOP to a worker, which goes on after a while."""
    rng = scene.rng("stops")
    while await scene.rest(rng.expovariate(1 / STOP_S)):
        if workers := [pid for replica in scene.replicas if replica.state == "up" for pid in replica.workers]:
            worker = rng.choice(workers)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                scene.ledger.happens("workers stopped for a while")
                await asyncio.sleep(rng.uniform(0, 3))
                os.kill(worker, signal.SIGCONT)


async def swap_artifacts(scene: Scene, shelf: Shelf) -> None:
    """Another artifact at the link; or a damaged one, which is refused, and then another that is whole."""
    rng = scene.rng("swaps")
    while await scene.rest(rng.uniform(0.5, 1.5) * SWAP_S):
        async with shelf.turn:
            target = rng.choice([name for name in shelf.artifacts if name != shelf.current])
            if rng.random() < SHARE_DAMAGED:
                await _put_damaged(scene, shelf)
            shelf.put(target)
            artifact_id = shelf.artifacts[target].artifact_id
            in_force = f'deepmcat_artifact_info{{artifact_id="{artifact_id}"}}'
            await _all_follow(scene, f"artifact {target}", partial(_is, in_force))
            scene.ledger.happens("artifacts swapped")


async def _put_damaged(scene: Scene, shelf: Shelf) -> None:
    refused = 'deepmcat_artifact_loads_total{result="damaged"}'
    before = {replica.pid: (await scraped(replica)).get(refused, 0) for replica in scene.replicas if _is_up(replica)}
    shelf.put(DAMAGED)
    for replica in scene.replicas:
        if (count := before.get(replica.pid)) is not None:
            await _follows(scene, replica, "refusing a damaged artifact", partial(_is_over, refused, count))
    scene.ledger.happens("damaged artifacts refused")


async def rename_categories(scene: Scene, shelf: Shelf) -> None:
    """Catalog versions appended, to artifacts in force and to others."""
    rng = scene.rng("names")
    while await scene.rest(rng.uniform(0.5, 1.5) * RENAME_S):
        await asyncio.to_thread(shelf.rename_categories, rng.choice(list(shelf.artifacts)))
        scene.ledger.happens("catalog versions appended")


async def roll_back(scene: Scene, shelf: Shelf) -> None:
    """An administrator rolls the first replica back, and forward again."""
    rng, steady = scene.rng("rollbacks"), scene.replicas[0]
    while await scene.rest(rng.uniform(0.5, 1.5) * ROLL_BACK_S):
        async with shelf.turn, grpc.aio.insecure_channel(steady.address) as channel:
            stub = pb_grpc.AdminServiceStub(channel)
            for _ in range(2):
                try:
                    reply = await stub.RollbackArtifact(pb.RollbackArtifactRequest(), timeout=FOLLOW_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # nothing is kept yet
                        scene.ledger.breaks("changes", "administrator", f"RollbackArtifact: {error.code().name}")
                    break
                if reply.artifact.artifact_id not in shelf.catalogs:
                    scene.ledger.breaks("changes", "administrator", "rolled back to an artifact that nobody made")
                scene.ledger.happens("artifacts rolled back")
                await scene.rest(rng.uniform(0, 3))


async def restart(scene: Scene, shelf: Shelf) -> None:
    """SIGTERM to the second replica under load, and a start."""
    rng, replica = scene.rng("restarts"), scene.replicas[1]
    while await scene.rest(rng.uniform(0.5, 1.0) * RESTART_S):
        try:
            code = await replica.stop()
        except TimeoutError:
            scene.ledger.breaks("drain", replica.name, "still running long after its grace")
            await replica.kill()
        else:
            if code != 0:
                scene.ledger.breaks("drain", replica.name, f"exit code {code}: {replica.last_words}")
        async with shelf.turn:
            await replica.start()
        scene.ledger.happens("replica restarted")


async def _all_follow(scene: Scene, what: str, condition: Callable[[dict[str, float]], bool]) -> None:
    for replica in scene.replicas:
        if _is_up(replica):
            await _follows(scene, replica, what, condition)


async def _follows(scene: Scene, replica: Replica, what: str, condition: Callable[[dict[str, float]], bool]) -> None:
    """Wait until a replica's metrics say that it has followed; one that goes down meanwhile need not."""
    turns, deadline = replica.turns, asyncio.get_running_loop().time() + FOLLOW_S
    while replica.turns == turns:
        try:
            if condition(await scraped(replica)):
                return
        except OSError:
            continue
        if asyncio.get_running_loop().time() > deadline:
            scene.ledger.breaks("changes", replica.name, f"{what}: not within {FOLLOW_S} s")
            return
        await asyncio.sleep(0.3)


def _is(name: str, page: dict[str, float]) -> bool:
    return page.get(name) == 1


def _is_over(name: str, count: float, page: dict[str, float]) -> bool:
    return page.get(name, 0) > count


def _is_up(replica: Replica) -> bool:
    return replica.state == "up"
