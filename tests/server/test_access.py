"""Who may call what in a whole server: every method by every scope, and what is logged of callers."""

from __future__ import annotations

import asyncio
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server import audit
from deepmcat_server.access import Access
from deepmcat_server.caller_ids import CallerIds
from deepmcat_server.callers import Caller
from deepmcat_server.errors import PermissionDenied
from deepmcat_server.interceptors import CALL, Call
from deepmcat_server.quotas import Quota, Quotas
from deepmcat_server.scopes import METHODS, is_open, required

from .authority import Issuer

REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
SERVICE = "deepmcat.v1.CategorizationService"
CANARY = "CANARY-91B4"


@pytest.fixture(name="issuer")
def issuer_fixture(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def reflected(channel: grpc.aio.Channel) -> list[tuple[str, str]]:
    """Every method of every service that the server says it has."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**question: Any) -> Any:
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
        return await call.read()

    services = [s.name for s in (await ask(list_services="")).list_services_response.service]
    methods = []
    for service in services:
        found = await ask(file_containing_symbol=service)
        for content in found.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(content)
            for s in file.service:
                methods += [(service, m.name) for m in s.method if f"{file.package}.{s.name}" == service]
    return methods


async def outcome(channel: grpc.aio.Channel, service: str, method: str, metadata: Any) -> grpc.StatusCode:
    """How a call without a request ends. What gets past access ends with another error of its own, or is cut off."""
    call = channel.stream_stream(f"/{service}/{method}")(metadata=metadata, timeout=10)
    await call.done_writing()
    return await call.code()


async def test_every_method_wants_its_scope(serving: Any, issuer: Issuer) -> None:
    """Each method that the server has lets in who has its scope and nobody else; open ones let in everybody."""
    async with serving(**issuer.settings, max_calls=64) as served:
        methods = await reflected(served.channel)
        for service, method in methods:
            if is_open(service):
                continue
            scope, unknown = required(service, method), await outcome(served.channel, service, method, ())
            if unknown is grpc.StatusCode.UNIMPLEMENTED and service == "inference.GRPCInferenceService":
                continue  # reflection tells the whole protocol, of which the server has a part
            assert scope is not None, f"nobody has said who may call {service}/{method}"
            assert unknown is grpc.StatusCode.UNAUTHENTICATED
            for granted in ("categorize", "read", "admin", ""):
                metadata = bearer(issuer.token(scope=f"deepmcat.{granted}"))
                code = await outcome(served.channel, service, method, metadata)
                if granted == scope:
                    assert code not in REFUSALS, (method, granted)
                else:
                    assert code is grpc.StatusCode.PERMISSION_DENIED, (method, granted)

    assert set(METHODS) <= set(methods)


async def test_health_and_reflection_are_for_everybody(serving: Any, issuer: Issuer) -> None:
    """Probes need no identity, and a bad token does not stop them; reflection can be taken away."""
    async with serving(**issuer.settings) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        health = await stub.Check(health_pb2.HealthCheckRequest(), metadata=bearer("bad"))
        assert await reflected(served.channel)
    async with serving(reflection=False) as served:
        gone = await outcome(served.channel, "grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", ())

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert gone is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", [SERVICE, "deepmcat.v1.NewService", "inference.GRPCInferenceService"])
async def test_a_method_without_a_scope_is_nobody_s(service: str) -> None:
    """Whoever adds a method says who may call it; until then not even every scope together is enough."""

    class Everything:
        async def of(self, context: Any) -> Caller:
            return Caller(key="jwt:root", scopes=frozenset({"categorize", "read", "admin"}))

    CALL.set(Call())
    access: Any = Access(Everything(), Quotas(Quota()))  # type: ignore[arg-type]
    with pytest.raises(PermissionDenied, match="no scope"):
        await access.before(service, "NewMethod", None)


async def test_admin_is_for_named_callers(serving: Any) -> None:
    """Where nobody says who calls, everybody may categorize and read, and nobody may administer."""
    assert required("deepmcat.v1.AdminService", "Anything") == "admin"
    async with serving(anonymous_scopes=("read",)) as served:
        await served.stub.GetArtifact(pb.GetArtifactRequest())
        assert await outcome(served.channel, SERVICE, "Categorize", ()) is grpc.StatusCode.PERMISSION_DENIED
    async with serving() as served:
        assert await outcome(served.channel, SERVICE, "Categorize", ()) not in REFUSALS


async def test_a_refused_administrator_is_audited(tmp_path: Path) -> None:
    """Who asked for an action without the scope is in the audit log by name."""

    class Reader:
        async def of(self, context: Any) -> Caller:
            return Caller(key="jwt:mallory", scopes=frozenset({"read"}))

    CALL.set(Call())
    access: Any = Access(Reader(), Quotas(Quota()))  # type: ignore[arg-type]
    with audit.opened(tmp_path / "audit.jsonl"), pytest.raises(PermissionDenied):
        await access.before("deepmcat.v1.AdminService", "LoadArtifact", None)

    line = json.loads((tmp_path / "audit.jsonl").read_text())
    expected = {"action": "LoadArtifact", "caller": "jwt:mallory", "outcome": "refused", "reason": "PERMISSION_DENIED"}
    assert expected.items() <= line.items()


async def test_who_calls_stays_out(serving: Any, issuer: Issuer, pngs: Any, request_of: Any, log: io.StringIO) -> None:
    """Tokens, subjects and claims are in no log line, metric or error, of calls that are let in and that are not."""
    good = issuer.token(sub=CANARY, scope="deepmcat.categorize", name=CANARY)
    expired = issuer.token(sub=CANARY, exp=1)
    powerless = issuer.token(sub=CANARY, scope=CANARY)
    seen: list[str] = []
    async with serving(**issuer.settings, quota_images_per_s=0.001, quota_burst_s=1000) as served:
        await served.stub.Categorize(request_of(pngs[0]), metadata=bearer(good))
        for token in (good, expired, powerless, CANARY, good[:-9] + CANARY):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.stub.Categorize(request_of(pngs[0]), metadata=bearer(token))
            seen += [str(caught.value.details()), str(caught.value.trailing_metadata())]
        url = f"http://{served.running.admin}/metrics"
        seen.append(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode()))
    seen.append(log.getvalue())

    assert len(set(seen)) == len(seen)
    for text in seen:
        for secret in (CANARY, good, good.split(".")[1], expired, powerless):
            assert secret not in text


async def test_the_same_caller_has_the_same_id(
    serving: Any, issuer: Issuer, pngs: Any, request_of: Any, log: io.StringIO, tmp_path: Path
) -> None:
    """Access lines carry a keyed id: one a caller, the same after a restart with the same key, and no address."""
    key = tmp_path / "key"
    key.write_text("a key of more than sixteen bytes\n")
    for _ in range(2):
        async with serving(**issuer.settings, caller_id_key_file=str(key)) as served:
            for subject in ("pacs", "pacs", "vna"):
                metadata = bearer(issuer.token(sub=subject, scope="deepmcat.categorize"))
                await served.stub.Categorize(request_of(pngs[0]), metadata=metadata)

    lines = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "call"]
    ids = CallerIds(b"a key of more than sixteen bytes")
    assert [line["caller_id"] for line in lines] == [ids(f"jwt:{who}") for who in ("pacs", "pacs", "vna")] * 2
    assert CallerIds()("jwt:pacs") != CallerIds()("jwt:pacs")
