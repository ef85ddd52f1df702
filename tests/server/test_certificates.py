"""TLS: certificates that are good, bad, replaced and expired, and callers with and without one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client import AsyncClient, Tls
from deepmcat_client.errors import PermissionDenied, Unauthenticated
from deepmcat_core.errors import ConfigError
from deepmcat_core.logs import JsonFormatter
from deepmcat_server.certificates import Certificates, Files
from deepmcat_server.metrics import Metrics

from .authority import LOOPBACK, Authority, Issued, Issuer

ASK = pb.GetArtifactRequest()


@pytest.fixture(name="authority")
def authority_fixture() -> Authority:
    return Authority()


@asynccontextmanager
async def connected(served: Any, authority: Authority, own: Issued | None = None) -> AsyncIterator[Any]:
    """A stub on a connection of its own, which believes `authority` and shows the certificate `own`."""
    credentials = grpc.ssl_channel_credentials(authority.cert, own and own.key, own and own.cert)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(str(served.running.listen), credentials, options=options) as channel:
        yield pb_grpc.CategorizationServiceStub(channel)


async def refusal(served: Any, authority: Authority, own: Issued | None = None) -> grpc.StatusCode:
    async with connected(served, authority, own) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetArtifact(ASK, timeout=5)
    return caught.value.code()


async def test_tls(serving: Any, authority: Authority, tmp_path: Path, pngs: Any, request_of: Any) -> None:
    """With a certificate the port speaks TLS and nothing else, and its expiry is a metric."""
    issued = authority.issue("server", LOOPBACK, days=(-1, 10))
    async with serving(**issued.write(tmp_path)) as served:
        async with connected(served, authority) as stub:
            answer = await stub.Categorize(request_of(pngs[1]))
        other = await refusal(served, Authority())
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await served.stub.GetArtifact(ASK, timeout=5)
        expiry = served.scraped["deepmcat_certificate_expiry_timestamp_seconds certificate=server"]

    assert answer.categorization.assignment.cluster_id == 1
    assert other is plain.value.code() is grpc.StatusCode.UNAVAILABLE
    assert expiry == x509.load_pem_x509_certificate(issued.cert).not_valid_after_utc.timestamp()


async def test_mutual_tls(serving: Any, authority: Authority, tmp_path: Path) -> None:
    """Callers need a valid certificate of tls_client_ca, and do what the patterns let its name do."""
    files = authority.issue("server", LOOPBACK).write(tmp_path)
    callers = Authority("callers")
    (tmp_path / "ca.crt").write_bytes(callers.cert)
    spiffe = x509.UniformResourceIdentifier("spiffe://hospital.example/ns/radiology/sa/pacs")
    scopes = {"spiffe://hospital.example/ns/*/sa/pacs": ("read",), "dns:*.example": ("categorize",)}
    async with serving(**files, tls_client_ca=str(tmp_path / "ca.crt"), certificate_scopes=scopes) as served:
        async with connected(served, authority, callers.issue("x", spiffe)) as stub:
            await stub.GetArtifact(ASK)
            with pytest.raises(grpc.aio.AioRpcError) as lacking:
                await stub.Categorize(pb.CategorizeRequest())
        named = await refusal(served, authority, callers.issue("x", x509.DNSName("pacs.example")))
        unknown = await refusal(served, authority, callers.issue("spiffe://hospital.example/ns/a/sa/pacs"))
        stranger = await refusal(served, authority, Authority("callers").issue("x", spiffe))
        expired = await refusal(served, authority, callers.issue("x", spiffe, days=(-2, -1)))
        nobody = await refusal(served, authority)
        expiries = [name for name in served.scraped if name.startswith("deepmcat_certificate_expiry")]

    assert lacking.value.code() is named is unknown is grpc.StatusCode.PERMISSION_DENIED
    assert stranger is expired is nobody is grpc.StatusCode.UNAVAILABLE
    assert len(expiries) == 2


async def test_tokens_beside_mutual_tls(serving: Any, authority: Authority, tmp_path: Path) -> None:
    """Where both are asked for, the certificate opens the connection and the token names the caller."""
    files, issuer = authority.issue("server", LOOPBACK).write(tmp_path), Issuer(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.cert)
    token = issuer.token(scope="deepmcat.read")
    async with (
        serving(**files, **issuer.settings, tls_client_ca=str(tmp_path / "ca.crt")) as served,
        connected(served, authority, authority.issue("gateway")) as stub,
    ):
        await stub.GetArtifact(ASK, metadata=(("authorization", f"Bearer {token}"),))
        with pytest.raises(grpc.aio.AioRpcError) as without:
            await stub.GetArtifact(ASK)

    assert without.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_our_client_brings_both(serving: Any, authority: Authority, tmp_path: Path, pngs: Any) -> None:
    """With `tls` and `token` the Python client is let in, and told apart what it lacks."""
    files, issuer = authority.issue("server", LOOPBACK).write(tmp_path), Issuer(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.cert)
    own = tmp_path / "client"
    own.mkdir()
    names = authority.issue("gateway").write(own)
    tls = Tls(ca=tmp_path / "ca.crt", cert=Path(names["tls_cert"]), key=Path(names["tls_key"]))
    token = issuer.token(scope="deepmcat.categorize")
    async with serving(**files, **issuer.settings, tls_client_ca=str(tmp_path / "ca.crt")) as served:
        address = str(served.running.listen)
        async with AsyncClient(address, tls=tls, token=token) as client:
            answer = await client.categorize(pngs[2])
            with pytest.raises(PermissionDenied):
                await client.get_artifact()
        async with AsyncClient(address, tls=tls, token="invented") as client:
            with pytest.raises(Unauthenticated):
                await client.categorize(pngs[2])

    assert answer.assignment.cluster_id == 2


async def test_a_certificate_is_replaced_under_traffic(
    serving: Any, authority: Authority, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """Old and new connections are answered without a failed call while the certificate and its authority change."""
    files, successor = authority.issue("server", LOOPBACK).write(tmp_path), Authority("successor")
    reloaded = "deepmcat_certificate_reloads_total result=ok"
    answered, stop = 0, asyncio.Event()

    async def call(stub: Any) -> None:
        nonlocal answered
        while not stop.is_set():
            await stub.GetArtifact(ASK)
            answered += 1

    async with (
        serving(**files, credentials_poll_s=0.02) as served,
        connected(served, authority) as old,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(call(old))
        await until(lambda: answered > 5)
        successor.issue("server", LOOPBACK).write(tmp_path)
        await until(lambda: served.scraped[reloaded] >= 1)
        async with connected(served, successor) as new:
            for _ in range(5):
                await new.GetArtifact(ASK)
        before = answered
        await until(lambda: answered > before)
        stop.set()
        assert await refusal(served, authority) is grpc.StatusCode.UNAVAILABLE


async def test_a_damaged_certificate_is_refused_and_the_old_one_goes_on(
    serving: Any, authority: Authority, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """What cannot be used is counted and changes nothing; the next good one is taken."""
    files = authority.issue("server", LOOPBACK).write(tmp_path)
    refused, reloaded = (f"deepmcat_certificate_reloads_total result={result}" for result in ("refused", "ok"))
    async with serving(**files, credentials_poll_s=0.02) as served:
        Issued(cert=b"damaged", key=b"damaged").write(tmp_path)
        await until(lambda: served.scraped[refused] == 1)
        async with connected(served, authority) as stub:
            await stub.GetArtifact(ASK)
        authority.issue("server", LOOPBACK).write(tmp_path)
        await until(lambda: served.scraped[reloaded] >= 1)
        async with connected(served, authority) as stub:
            await stub.GetArtifact(ASK)


@pytest.fixture(name="registry")
def registry_fixture() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(name="open_files")
def open_files_fixture(tmp_path: Path, registry: CollectorRegistry) -> Callable[[], Certificates]:
    """The files in tmp_path, with a client_ca where there is one."""
    metrics = Metrics(registry)

    def open_files() -> Certificates:
        ca = tmp_path / "ca.crt"
        files = Files(cert=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=ca if ca.exists() else None)
        return Certificates(files, poll_s=60, metrics=metrics)

    return open_files


def damaged(kind: str, authority: Authority, folder: Path) -> None:
    """Good files in `folder`, but for one thing."""
    good = authority.issue()
    if kind in {"expired", "early"}:
        good = authority.issue(days=(-2, -1) if kind == "expired" else (1, 2))
    good.write(folder)
    match kind:
        case "expired chain":
            (folder / "tls.crt").write_bytes(good.cert + authority.issue(days=(-2, -1)).cert)
        case "cut":
            (folder / "tls.crt").write_bytes(good.cert[:300])
        case "other key":
            (folder / "tls.key").write_bytes(authority.issue().key)
        case "no key":
            (folder / "tls.key").write_bytes(good.cert)
        case "large":
            (folder / "tls.crt").write_bytes(good.cert * 4000)
        case "no authority":
            (folder / "ca.crt").write_bytes(b"")
        case "missing":
            (folder / "tls.key").unlink()


SENTENCES = {
    "expired": "tls_cert has expired",
    "early": "tls_cert is not valid yet",
    "expired chain": "tls_cert has expired",
    "cut": "tls_cert holds no certificate",
    "other key": "tls_key is not the key of tls_cert",
    "no key": "tls_key holds no private key",
    "large": "more than 1048576 bytes",
    "no authority": "tls_client_ca holds no certificate",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_bad_files_at_the_start(kind: str, authority: Authority, tmp_path: Path, open_files: Any) -> None:
    """A server does not start with files that would fail every connection, and says which and why."""
    damaged(kind, authority, tmp_path)
    with pytest.raises(ConfigError, match=SENTENCES[kind]):
        open_files()


@pytest.mark.parametrize("kind", [kind for kind in SENTENCES if kind != "no authority"])
def test_bad_files_later(
    kind: str, authority: Authority, tmp_path: Path, open_files: Any, registry: CollectorRegistry
) -> None:
    """The same files later are refused once, in a log line with the reason, and counted; good ones end it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("deepmcat.server.certificates")
    authority.issue().write(tmp_path)
    certificates = open_files()
    log.addHandler(handler)
    try:
        damaged(kind, authority, tmp_path)
        for _ in range(3):
            certificates.refresh()
        authority.issue().write(tmp_path)
        certificates.refresh()
    finally:
        log.removeHandler(handler)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines[:1]] == ["certificate refused"]
    assert SENTENCES[kind] in lines[0]["reason"]
    for result in ("refused", "ok"):
        assert registry.get_sample_value("deepmcat_certificate_reloads_total", {"result": result}) == 1
    assert str(tmp_path) not in stream.getvalue()


def test_an_old_authority_beside_a_new_one_is_no_reason(authority: Authority, tmp_path: Path, open_files: Any) -> None:
    """A bundle of authorities may keep one that has expired, as long as one has not."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.issue(days=(-2, -1)).cert + authority.cert)
    open_files()
