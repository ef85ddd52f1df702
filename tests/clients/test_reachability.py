"""`deepmcat doctor --server`: each way in which a server cannot be reached has its own sentence."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deepmcat_client import Tls, TokenFile, cli
from deepmcat_client.checks import Check, Status
from deepmcat_client.reachability import look

from .certificates import DAY, NOW, Authority
from .fakes import FakeServicer, serving_in_thread


def last(target: str, tls: Tls | None = None, token: TokenFile | None = None) -> Check:
    """Where it ends."""
    return list(look(target, tls, token))[-1]


def assert_fails(check: Check, *parts: str) -> None:
    """A failure whose sentence has these."""
    assert check.status is Status.FAIL
    assert [part for part in parts if part not in check.detail] == [], check.detail


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """The address of something that says `content` to whoever has said something, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(content)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


def test_a_server_that_answers_passes_every_check() -> None:
    """The connection, then the call, with what it serves."""
    with serving_in_thread(FakeServicer()) as address:
        checks = list(look(address, None, None))

    assert [(check.name, check.status) for check in checks] == [(address, Status.OK), ("deepmcat.v1", Status.OK)]
    assert "artifact aaaaaaaaaaaa" in checks[1].detail


def test_a_name_that_does_not_resolve() -> None:
    """RFC 6761: nothing is ever called .invalid."""
    assert_fails(last("deepmcat.invalid:50051"), "not known here", "DNS")


def test_nothing_listens() -> None:
    """Refused is told from silence."""
    assert_fails(last("127.0.0.1:1"), "nothing listens", "port")


def test_several_servers_are_looked_at_each() -> None:
    """The one that fails is named, and the other is asked."""
    with serving_in_thread(FakeServicer()) as address:
        checks = list(look(f"127.0.0.1:1,{address}", None, None))
    assert [check.status for check in checks] == [Status.FAIL, Status.OK, Status.OK]


def test_tls_here_and_plain_text_there() -> None:
    """And the other way round."""
    with serving_in_thread(FakeServicer()) as address:
        assert_fails(last(address, Tls()), "does not speak TLS")


def test_plain_text_here_and_tls_there(tmp_path: Path) -> None:
    """The way out is named."""
    authority = Authority(tmp_path)
    with serving_in_thread(FakeServicer(), authority.serves(authority.pair("server"))) as address:
        assert_fails(last(address), "speaks TLS", "--tls-ca")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", ("no HTTP/2",)),
        (b"\x15\x03\x01\x00\x02\x02\x46", ("it speaks TLS", "--tls")),
        (b"", ("closes the connection at once",)),
    ],
)
def test_something_else_answers(content: bytes, parts: tuple[str, ...]) -> None:
    """A web server, a TLS alert, a port that is guarded."""
    with answering(content) as address:
        assert_fails(last(address), *parts)


def test_a_certificate_is_judged_as_gRPC_judges_it(tmp_path: Path) -> None:  # noqa: N802 - its name
    """Expired, unknown, for another name: each by its own sentence; one that is good, with the day on which it ends."""
    ours, other = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "other", "other")
    good, old = ours.pair("server"), ours.pair("old", until=NOW - DAY)
    elsewhere, soon = ours.pair("elsewhere.example", address="127.0.0.9"), ours.pair("soon", until=NOW + 3 * DAY)
    ca = Tls(ca=ours.ca)

    with serving_in_thread(FakeServicer(), ours.serves(good)) as address:
        checks = list(look(address, ca, None))
        assert [check.status for check in checks] == [Status.OK, Status.OK]
        assert "TLSv1.3; its certificate is valid until" in checks[0].detail
        assert_fails(last(address, Tls(ca=other.ca)), "nobody here trusts", "--tls-ca")
        assert_fails(last(address, Tls(ca=good.key)), "cannot be used")
    with serving_in_thread(FakeServicer(), ours.serves(old)) as address:
        assert_fails(last(address, ca), "expired", "clock")
    with serving_in_thread(FakeServicer(), ours.serves(elsewhere)) as address:
        assert_fails(last(address, ca), "another name", "--tls-server-name")
        assert last(address, Tls(ca=ours.ca, server_name="elsewhere.example")).status is Status.OK
    with serving_in_thread(FakeServicer(), ours.serves(soon)) as address:
        assert next(iter(look(address, ca, None))).status is Status.WARN


def test_a_server_that_wants_a_certificate(tmp_path: Path) -> None:
    """Mutual TLS without one, and with one."""
    authority = Authority(tmp_path)
    server, own = authority.pair("server"), authority.pair("client")
    with serving_in_thread(FakeServicer(), authority.serves(server, mutual=True)) as address:
        assert_fails(last(address, Tls(ca=authority.ca)), "certificate of yours", "--tls-cert")
        assert last(address, Tls(ca=authority.ca, cert=own.cert, key=own.key)).status is Status.OK


@pytest.mark.parametrize(
    ("code", "parts"),
    [("UNAUTHENTICATED", ("who is asking", "--token-file")), ("PERMISSION_DENIED", ("says no",))],
)
def test_a_server_that_asks_who_is_calling(code: str, parts: tuple[str, ...]) -> None:
    """The connection is fine; the call says what is missing."""
    import grpc

    class Guarded(FakeServicer):
        async def GetArtifact(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
            await context.abort(grpc.StatusCode[code], "no")

    with serving_in_thread(Guarded()) as address:
        assert_fails(last(address), *parts)


def test_doctor_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one screen, or as JSON; exit code 2 where something fails; environment variables count; no token is shown."""
    authority = Authority(tmp_path)
    (tmp_path / "token").write_text("secret-token")
    with serving_in_thread(FakeServicer(), authority.serves(authority.pair("server"))) as address:
        arguments = [
            "doctor",
            "--server",
            address,
            "--tls-ca",
            str(authority.ca),
            "--token-file",
            str(tmp_path / "token"),
        ]
        assert cli.main(arguments) == 0
        assert cli.main(["doctor", "--server", address, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("ok") == 2
    failed = json.loads(captured.out.splitlines()[-1])["checks"]
    assert [check["status"] for check in failed] == ["FAIL"]
    assert "secret-token" not in captured.out + captured.err


def test_the_environment_says_how_to_reach_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DEEPMCAT_CLIENT_…: what need not be typed each time."""
    authority, servicer = Authority(tmp_path), FakeServicer()
    (tmp_path / "token").write_text("t")
    (tmp_path / "image").write_bytes(b"123")
    monkeypatch.setenv("DEEPMCAT_CLIENT_TLS_CA", str(authority.ca))
    monkeypatch.setenv("DEEPMCAT_CLIENT_TOKEN_FILE", str(tmp_path / "token"))
    with serving_in_thread(servicer, authority.serves(authority.pair("server"))) as address:
        assert cli.main(["categorize", str(tmp_path / "image"), "--server", address]) == 0
        assert cli.main(["describe", "--server", address]) == 0
    assert servicer.tokens == ["Bearer t"]


def test_a_token_in_plain_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, before anything is sent."""
    (tmp_path / "token").write_text("secret-token")
    arguments = ["--server", "example.org:50051", "--token-file", str(tmp_path / "token")]

    assert cli.main(["describe", *arguments]) == 2
    captured = capsys.readouterr()
    assert "only over TLS" in captured.err
    assert "secret-token" not in captured.err
