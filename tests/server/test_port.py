"""What gRPC itself refuses on the port, by settings."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc

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
