"""The port: whose it is, and what gRPC itself refuses there, by settings."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core.errors import ConfigError
from deepmcat_server import port
from deepmcat_server.addresses import Address

ANY = Address("127.0.0.1", 0)
ASK = pb.GetArtifactRequest()
ALONE = [("grpc.use_local_subchannel_pool", 1)]


async def test_metadata_has_a_limit(serving: Any) -> None:
    """A call whose metadata is over max_metadata_bytes is refused; below it a large token has room."""
    async with serving(max_metadata_bytes=32768) as served:
        await served.stub.GetArtifact(ASK, metadata=(("x-large", "x" * 30000),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.GetArtifact(ASK, metadata=(("x-large", "x" * 33000),))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_connections_have_a_limit(serving: Any) -> None:
    """Beyond max_connections a new one is closed at once, and those before it go on."""
    async with serving(max_connections=1) as served:
        await served.stub.GetArtifact(ASK)
        async with grpc.aio.insecure_channel(str(served.running.listen), options=ALONE) as second:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.CategorizationServiceStub(second).GetArtifact(ASK, timeout=2)
        await served.stub.GetArtifact(ASK)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_old_connections_are_renewed_without_a_failed_call(serving: Any) -> None:
    """With max_connection_age_s a caller is sent to a new connection, and no call fails."""
    states: list[grpc.ChannelConnectivity] = []
    async with serving(max_connection_age_s=0.1) as served, asyncio.timeout(30):
        while states.count(grpc.ChannelConnectivity.IDLE) < 3:  # the first, and after each connection that has ended
            states.append(served.channel.get_state())
            await served.stub.GetArtifact(ASK)
            await asyncio.sleep(0.2)


def test_a_port_is_reserved_for_those_who_share_it():
    """Port 0 becomes one port that nobody else gets, neither a server alone nor other fronts."""
    with port.reserved(ANY) as held:
        assert held.port
        with socket.create_server(held, reuse_port=True):
            for others in (held, Address("localhost", held.port)):
                with pytest.raises(ConfigError, match=f"cannot listen on {others}"), port.reserved(others):
                    pytest.fail("somebody else listens there")


def test_two_supervisors_do_not_share_a_port():
    """Started together, before anybody listens: the second one is told, and may have it when the first has gone."""
    with port.reserved(ANY) as held:
        with pytest.raises(ConfigError, match=f"cannot listen on {held}"), port.reserved(held):
            pytest.fail("somebody else has it")
        with socket.create_server(held, reuse_port=True) as listening:
            calling = socket.create_connection(held)
            answering, _ = listening.accept()
            answering.close()  # whoever closes first keeps it in TIME_WAIT
            calling.close()
    with port.reserved(held) as again:
        assert again == held
        with pytest.raises(ConfigError, match=f"cannot listen on {held}"), port.reserved(held):
            pytest.fail("somebody else has it, beside what is left of its last one")
        with socket.create_server(held, reuse_port=True), socket.create_server(held, reuse_port=True):
            pass


def test_one_of_two_that_start_at_once_gets_the_port():
    """However their steps mix, there is never more than one, and never none."""
    with port.reserved(ANY) as held:
        pass
    rounds, begin, end = 500, threading.Barrier(2), threading.Barrier(2)

    def reserve(_: int) -> list[bool]:
        won = []
        for _ in range(rounds):
            begin.wait()
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(port.reserved(held))
                    won.append(True)
                except ConfigError:
                    won.append(False)
                end.wait()
        return won

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(reserve, range(2))
    assert [a != b for a, b in zip(first, second, strict=True)] == [True] * rounds
