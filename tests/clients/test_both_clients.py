"""Client and AsyncClient make the same promises: each test runs over both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import AsyncClient, Client, Tls, TokenFile
from deepmcat_client.errors import (
    CorruptImage,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    Unauthenticated,
    Unavailable,
)

from .certificates import Authority
from .fakes import QUICK, FakeServicer, answer, fail, respond, serving_in_thread, sizes

DEAD = "127.0.0.1:1"


class Blocking:
    """An AsyncClient whose methods wait, so that a test can be written once."""

    def __init__(self, target: str, **settings: Any) -> None:
        self._client = AsyncClient(target, **settings)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Blocking:
        try:
            self._runner.run(self._client.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._client.__aexit__(*error))
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._runner.run(getattr(self._client, name)(*arguments))

    def categorize_stream(self, items: Any, *options: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [pair async for pair in self._client.categorize_stream(items, *options)]

        return self._runner.run(collect())


@pytest.fixture(name="client_of", params=[Client, Blocking], ids=["Client", "AsyncClient"])
def client_of_fixture(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`with client_of(target, …) as client`: either client, quick to try again."""
    return lambda target, **settings: request.param(target, **({"retry": QUICK} | settings))


@contextmanager
def servers(*servicers: FakeServicer) -> Iterator[str]:
    """The target of several servers."""
    with ExitStack() as stack:
        yield ",".join(stack.enter_context(serving_in_thread(servicer)) for servicer in servicers)


def images(count: int) -> list[tuple[int, bytes]]:
    """Images that can be told apart by their answers."""
    return [(number, b"x" * number) for number in range(1, count + 1)]


def test_the_two_have_the_same_face() -> None:
    """Same arguments with the same defaults, same methods with the same parameters."""

    def parameters(function: Any) -> list[tuple[str, Any]]:
        return [(name, p.default) for name, p in inspect.signature(function).parameters.items()]

    def methods(kind: type) -> dict[str, Any]:
        return {name: parameters(f) for name, f in vars(kind).items() if not name.startswith("_")}

    assert parameters(Client) == parameters(AsyncClient)
    assert methods(Client) == methods(AsyncClient)


def test_several_servers_share_the_images(client_of: Callable[..., Any]) -> None:
    """Of a stream to two servers each gets a good part, and answers keep the order of the images."""
    first, second = FakeServicer(), FakeServicer()
    with servers(first, second) as target, client_of(target, in_flight=8, images_per_call=10) as client:
        assert sizes(list(client.categorize_stream(images(200)))) == images_sizes(200)

    assert len(first.received) + len(second.received) == 200
    assert min(len(first.received), len(second.received)) >= 20


def images_sizes(count: int) -> list[tuple[int, int]]:
    """What `sizes` gives for all of `images`."""
    return [(number, number) for number in range(1, count + 1)]


def test_a_stream_goes_on_with_another_call_after_so_many_images(client_of: Callable[..., Any]) -> None:
    """No call carries more than images_per_call, so that servers that have come since get their share."""
    servicer = FakeServicer()
    with serving_in_thread(servicer) as target, client_of(target, images_per_call=10) as client:
        assert sizes(list(client.categorize_stream(images(35)))) == images_sizes(35)

    assert sorted(servicer.images_of_call.values()) == [5, 10, 10, 10]


def test_a_dead_server_among_several_costs_nothing(client_of: Callable[..., Any]) -> None:
    """Streams and single calls are answered by the server that is there, each image by one answer."""
    servicer = FakeServicer()
    with serving_in_thread(servicer) as alive, client_of(f"{DEAD},{alive}") as client:
        assert sizes(list(client.categorize_stream(images(50)))) == images_sizes(50)
        for _ in range(4):
            assert client.categorize(b"123").assignment.cluster_id == 3
        assert client.get_artifact() == client.get_artifact()
        assert client.list_categories().version == 1

    assert len(servicer.received) == 50


def test_a_closing_server_leaves_nothing_unanswered(client_of: Callable[..., Any]) -> None:
    """What a server leaves when it closes goes to the other one, and nothing is answered twice or out of order."""

    async def closing(servicer: Any, call: int, received: Any, context: Any) -> Any:
        async for image in received:
            yield respond(image)
            if len(servicer.received) % 7 == 0:
                await fail(context, "SERVER_CLOSING")

    first, second = FakeServicer(stream=closing), FakeServicer(stream=closing)
    with servers(first, second) as target, client_of(target) as client:
        assert sizes(list(client.categorize_stream(images(100)))) == images_sizes(100)


def test_a_call_that_a_stopping_server_cancels_is_sent_again(client_of: Callable[..., Any]) -> None:
    """grpc.aio cancels calls that arrive while a server stops: single calls and streams go on all the same."""

    async def cancelled_once(servicer: Any, request: Any, context: Any) -> Any:
        if servicer.unary_calls == 1:
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return pb.CategorizeResponse(categorization=answer(request.image.encoded))

    async def cancelled_early(servicer: Any, call: int, received: Any, context: Any) -> Any:
        async for image in received:
            yield respond(image)
            if len(servicer.received) == 5:
                await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")

    servicer = FakeServicer(unary=cancelled_once, stream=cancelled_early)
    with serving_in_thread(servicer) as target, client_of(target) as client:
        assert client.categorize(b"123").assignment.cluster_id == 3
        assert sizes(list(client.categorize_stream(images(20)))) == images_sizes(20)


def test_errors_are_answers_in_a_stream_and_raised_elsewhere(client_of: Callable[..., Any]) -> None:
    """One bad image disturbs no other."""
    with serving_in_thread(FakeServicer()) as target, client_of(target) as client:
        answers = list(client.categorize_stream([(1, b"x"), (2, b"corrupt"), (3, b"x")]))

        assert [isinstance(answer, CorruptImage) for _, answer in answers] == [False, True, False]


def test_the_deadline_holds_across_retries(client_of: Callable[..., Any]) -> None:
    """A server that refuses and then hangs cannot hold a caller longer than timeout_s."""

    async def refuse_and_hang(servicer: FakeServicer, request: Any, context: Any) -> None:
        if servicer.unary_calls < 3:
            await fail(context, "SERVER_BUSY", retry_s=0.01)
        await asyncio.sleep(30)

    servicer = FakeServicer(unary=refuse_and_hang)
    with (
        serving_in_thread(servicer) as target,
        client_of(target, timeout_s=0.8) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.categorize(b"x")
    assert servicer.unary_calls == 3


def test_a_wait_that_ends_too_late_is_not_begun(client_of: Callable[..., Any]) -> None:
    """Where the server asks for more time than there is, its refusal is raised at once."""

    async def refuse(servicer: FakeServicer, request: Any, context: Any) -> None:
        await fail(context, "SERVER_BUSY", retry_s=20)

    servicer = FakeServicer(unary=refuse)
    with serving_in_thread(servicer) as target, client_of(target, timeout_s=5) as client, pytest.raises(ServerBusy):
        client.categorize(b"x")
    assert servicer.unary_calls == 1


def test_a_token_goes_with_every_call_and_is_read_again(client_of: Callable[..., Any], tmp_path: Path) -> None:
    """What the token file holds at the time of the call is what the server sees, in unary calls and in streams."""
    file = tmp_path / "token"
    file.write_text("first\n")
    servicer = FakeServicer()
    with serving_in_thread(servicer) as target, client_of(target, token=TokenFile(file)) as client:
        client.categorize(b"x")
        file.write_text("second")
        list(client.categorize_stream(images(2)))
        file.unlink()
        with pytest.raises(Unauthenticated, match="cannot be read"):
            client.categorize(b"x")

    assert servicer.tokens == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "pässword"])
def test_what_is_no_token_is_not_sent(client_of: Callable[..., Any], token: str) -> None:
    """A token that HTTP would mangle is refused here, and is not in the message."""
    with client_of(DEAD, token=token) as client, pytest.raises(Unauthenticated) as raised:
        client.categorize(b"x")
    assert not token or token not in str(raised.value)


@pytest.mark.parametrize("target", ["example.org:50051", "127.0.0.1:1,10.0.0.1:1", "dns:///example.org:50051"])
def test_a_token_is_never_sent_in_plain_text(client_of: Callable[..., Any], target: str) -> None:
    """Only this machine may hear a token without TLS; what else is in the list of servers counts."""
    with pytest.raises(InvalidRequest, match="only over TLS") as raised, client_of(target, token="secret"):
        pass
    assert "secret" not in str(raised.value)
    with client_of(target, token="secret", tls=Tls()):
        pass


@pytest.mark.parametrize("target", ["localhost:1", "[::1]:1", "unix:/tmp/x", "dns:///localhost:1", "127.8.0.1:1"])
def test_this_machine_may_hear_a_token(client_of: Callable[..., Any], target: str) -> None:
    """Loopback in its several spellings."""
    with client_of(target, token="secret"):
        pass


def test_tls_with_a_private_authority(client_of: Callable[..., Any], tmp_path: Path) -> None:
    """A server is believed where its certificate is signed by `ca` and for the name that is asked."""
    ours, other = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "other", "other")
    pair = ours.pair("server.example", address="127.0.0.9")
    with serving_in_thread(FakeServicer(), ours.serves(pair)) as target:
        named = {"server_name": "server.example"}
        with client_of(target, tls=Tls(ca=ours.ca, **named), token="t") as client:
            assert client.categorize(b"12").assignment.cluster_id == 2
            assert sizes(list(client.categorize_stream(images(5)))) == images_sizes(5)
        with client_of(target, tls=Tls(ca=other.ca, **named)) as client, pytest.raises(Unavailable, match="trusts"):
            client.categorize(b"12")
        with client_of(target, tls=Tls(ca=ours.ca)) as client, pytest.raises(Unavailable, match="another name"):
            client.categorize(b"12")
        with client_of(target) as client, pytest.raises(Unavailable):
            client.categorize(b"12")


def test_mutual_tls(client_of: Callable[..., Any], tmp_path: Path) -> None:
    """A server that asks for a certificate answers those that have one, and no others."""
    authority = Authority(tmp_path)
    server, own = authority.pair("server"), authority.pair("client")
    with serving_in_thread(FakeServicer(), authority.serves(server, mutual=True)) as target:
        with client_of(target, tls=Tls(ca=authority.ca, cert=own.cert, key=own.key)) as client:
            assert client.categorize(b"12").assignment.cluster_id == 2
        with client_of(target, tls=Tls(ca=authority.ca)) as client, pytest.raises(Unavailable):
            client.categorize(b"12")


def test_certificates_that_cannot_be_used_are_told_at_once(client_of: Callable[..., Any], tmp_path: Path) -> None:
    """Half of a pair, a file that is not there, and one that is no PEM."""
    (tmp_path / "der").write_bytes(b"0\x82")
    with pytest.raises(InvalidRequest, match="go together"):
        Tls(cert=tmp_path / "c")
    for name, sentence in (("gone", "cannot be read"), ("der", "is not PEM")):
        with pytest.raises(InvalidRequest, match=sentence), client_of(DEAD, tls=Tls(ca=tmp_path / name)):
            pass


@pytest.mark.parametrize("target", ["", "a", "a:", "a:0", "a:99999", "a:1,", "a:1 b:2", "::1:50051"])
def test_what_is_no_address_is_told_at_once(client_of: Callable[..., Any], target: str) -> None:
    """Before anything is sent: what was given and what is meant."""
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        client_of(target)
