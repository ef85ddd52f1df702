"""Start, health, reflection, naming while running, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.catalog import CategoryStatus
from deepmcat_core.errors import ConfigError
from deepmcat_server.addresses import Address
from deepmcat_server.admin import Admin
from deepmcat_server.pulse import Pulse

SERVICE = "deepmcat.v1.CategorizationService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def get(address: object, path: str) -> tuple[int, str]:
    """An HTTP GET of the admin port."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_every_bucket_is_warm_before_serving(serving):
    """The engine has run each batch bucket once before the first call is taken."""
    async with serving(max_batch=12) as served:
        assert served.engine.warmed == [1, 2, 4, 8, 12]
        assert served.engine.batches == []


async def test_health_says_serving(serving):
    """Health is SERVING for the server as a whole and for the service, and unknown for others."""
    async with serving() as served:
        health = health_pb2_grpc.HealthStub(served.channel)
        for name in ("", SERVICE):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="other"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(serving):
    """grpcurl and its like find the service and its contract without a proto file."""
    async with serving() as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]

    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_admin_port_answers_probes(serving):
    """/livez and /readyz are plain text for probes; other paths say what there is."""
    async with serving() as served:
        address = served.running.admin
        assert await asyncio.to_thread(get, address, "/livez") == (200, "ok\n")
        assert await asyncio.to_thread(get, address, "/readyz") == (200, "ok\n")
        assert (await asyncio.to_thread(get, address, "/other"))[0] == 404


@pytest.mark.parametrize(
    ("silence_s", "alive", "ready"),
    [(0.0, 200, 200), (9.9, 200, 200), (10.0, 200, 503), (59.9, 200, 503), (60.0, 503, 503)],
)
def test_a_loop_that_does_not_go_round_is_not_ready_and_then_stuck(silence_s, alive, ready):
    """Probes take it out of service after ten seconds, and start it again after a minute."""
    with Admin(Address("127.0.0.1", 0), CollectorRegistry(), lambda: silence_s) as admin:
        admin.ready = True
        answers = [get(admin.address, path) for path in ("/livez", "/readyz")]

    assert [status for status, _ in answers] == [alive, ready]
    assert all(
        text == ("ok\n" if status == 200 else f"the event loop has been busy for {silence_s:.0f} s\n")
        for status, text in answers
    )


async def test_a_pulse_is_silent_while_the_loop_is_held_up(monkeypatch):
    """It beats again as soon as the loop goes round, and says nothing before it begins and after it has ended."""
    monkeypatch.setattr("deepmcat_server.pulse.BEAT_S", 0.001)
    pulse = Pulse()
    before = pulse.silence_s
    async with pulse:
        time.sleep(0.05)  # noqa: ASYNC251 - what must not happen
        held_up = pulse.silence_s
        while pulse.silence_s >= 0.05:  # noqa: ASYNC110 - a beat tells nobody
            await asyncio.sleep(0.001)

    assert held_up >= 0.05
    assert before == pulse.silence_s == 0.0


async def test_a_server_that_is_held_up_says_so(serving, monkeypatch):
    """What the admin port tells is of the server's own loop, from a thread of its own."""
    monkeypatch.setattr("deepmcat_server.pulse.BEAT_S", 0.001)
    monkeypatch.setattr("deepmcat_server.admin.LATE_S", 0.3)
    async with serving() as served:
        asked = threading.Event()

        def ask() -> tuple[int, str]:
            time.sleep(0.5)
            try:
                return get(served.running.admin, "/readyz")
            finally:
                asked.set()

        asking = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.sleep(0)
        asked.wait()  # and the loop with it
        assert (await asking)[0] == 503


async def test_drain_window_answers_as_before(serving, pngs, request_of):
    """From the first signal on health says NOT_SERVING, its watchers are told, and new calls are still answered."""
    async with asyncio.timeout(20):
        server = serving(drain_s=0.5)
        served = await server.__aenter__()
        channel = grpc.aio.insecure_channel(str(served.running.listen))
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == SERVING
        leaving = asyncio.create_task(server.__aexit__(None, None, None))
        assert (await watch.read()).status == NOT_SERVING
        ready = await asyncio.to_thread(get, served.running.admin, "/readyz")
        stub = type(served.stub)(channel)
        answer = await stub.Categorize(request_of(pngs[1]))
        await leaving
        await channel.close()

    assert ready == (503, "not ready\n")
    assert answer.categorization.assignment.cluster_id == 1


async def test_drain_loses_nothing_of_an_open_stream(serving, pngs, request_of, until, answers_of):
    """A stream open at the drain gets every answer of what was read, then UNAVAILABLE with SERVER_CLOSING."""
    async with asyncio.timeout(20):
        server = serving()
        served = await server.__aenter__()
        channel = grpc.aio.insecure_channel(str(served.running.listen))
        idle = type(served.stub)(channel).CategorizeStream()
        call = type(served.stub)(channel).CategorizeStream()
        served.engine.free.clear()
        for i in range(6):
            await call.write(pb.CategorizeStreamRequest(item=request_of(pngs[i % 4], str(i))))
        await until(lambda: served.running.admission.images == 6)
        leaving = asyncio.create_task(server.__aexit__(None, None, None))
        await idle.code()
        served.engine.free.set()
        answers = await answers_of(call)
        code, trailers = await call.code(), dict(await call.trailing_metadata())
        await leaving
        await channel.close()

    assert [a.item_id for a in answers] == [str(i) for i in range(6)]
    assert all(a.WhichOneof("result") == "categorization" for a in answers)
    assert code is grpc.StatusCode.UNAVAILABLE
    info = ErrorInfo()
    assert Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
    assert info.reason == "SERVER_CLOSING"


async def test_open_watch_does_not_use_up_the_grace(serving):
    """A health watch that stays open does not delay the stop."""
    async with serving(grace_s=60) as served:
        channel = grpc.aio.insecure_channel(str(served.running.listen))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 20
    assert loop.time() < deadline
    await channel.close()


async def test_new_names_come_into_force(serving, pngs, request_of, until):
    """A catalog version appended while the server runs is used from the next answer on; a damaged one is refused."""
    async with serving() as served:
        artifact = served.categorizer.artifact
        renamed = [
            dataclasses.replace(c, name=f"{c.name}, reviewed", status=CategoryStatus.NAMED)
            for c in artifact.catalog.categories
        ]
        artifact.append_catalog(artifact.catalog.succeed(renamed))
        await until(lambda: served.categorizer.catalog.version == 2)
        named = await served.stub.Categorize(request_of(pngs[0]))
        (artifact.folder / "catalog" / "000003.json").write_text(json.dumps({"version": 3}))
        await asyncio.sleep(0.2)
        still = await served.stub.Categorize(request_of(pngs[0]))

    assert named.categorization.assignment.category == "CT chest, reviewed"
    assert named.categorization.catalog_version == 2
    assert still.categorization.catalog_version == 2


async def test_busy_ports_are_named(serving):
    """A port that somebody else has is a ConfigError that names the address, for gRPC and for admin."""
    async with serving() as served:
        for setting in ("listen", "admin"):
            busy = str(getattr(served.running, setting))
            with pytest.raises(ConfigError, match=busy):
                async with serving(**{setting: busy}):
                    pytest.fail("it should not have started")


async def test_failed_start_leaves_no_thread_behind(serving, tmp_path: Path):
    """When a start fails half-way, the admin port is free again."""

    def no_pool(workers: int) -> object:
        raise ConfigError("no workers today")

    async with serving() as served:
        free = str(served.running.admin)
    with pytest.raises(ConfigError, match="no workers"):
        async with serving(pool=no_pool, admin=free):
            pytest.fail("it should not have started")
    async with serving(admin=free) as served:
        assert str(served.running.admin) == free
