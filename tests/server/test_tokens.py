"""Tokens: what holds, what does not and says why without repeating any of it, and where keys come from."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from prometheus_client import CollectorRegistry

from deepmcat_core.errors import ConfigError
from deepmcat_server.errors import Unauthenticated
from deepmcat_server.metrics import Metrics
from deepmcat_server.signing_keys import MAX_STALE_S, SigningKeys
from deepmcat_server.tokens import Tokens

from .authority import AUDIENCE, ISSUER, Issuer, key_of, rsa_key

CANARY = "CANARY-5D1C"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="issuer")
def issuer_fixture(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture(name="registry")
def registry_fixture() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    return Clock()


@pytest.fixture(name="reading")
def reading_fixture(issuer: Issuer, registry: CollectorRegistry, clock: Clock) -> Callable[..., Any]:
    """`async with reading() as tokens`: what reads the issuer's tokens."""
    metrics = Metrics(registry)

    @asynccontextmanager
    async def reading(location: str = "", refresh_s: float = 3600, **options: Any) -> AsyncIterator[Tokens]:
        keys = SigningKeys(location or str(issuer.path), refresh_s=refresh_s, metrics=metrics, clock=clock)
        chosen: dict[str, Any] = {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "algorithms": ("RS256", "PS256", "ES256", "EdDSA"),
            "leeway_s": 5.0,
            "scope_claims": ("scope", "scp", "roles"),
            "scopes": {},
        }
        async with keys:
            yield Tokens(keys, **(chosen | options))

    return reading


@pytest.fixture(name="web")
def web_fixture() -> Iterator[Any]:
    """An HTTP server on loopback: `answer` is what it says, `asked` how often; at /elsewhere it says `elsewhere`."""

    class Web:
        answer: tuple[int, dict[str, str], bytes] = (200, {}, b"{}")
        elsewhere = b""
        asked = 0
        free = threading.Event()
        url = ""

    web = Web()
    web.free.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked += 1
            web.free.wait(10)
            status, headers, body = (200, {}, web.elsewhere) if self.path == "/elsewhere" else web.answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}/certs"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.free.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
async def test_a_good_token_names_its_caller(issuer: Issuer, reading: Any, algorithm: str) -> None:
    """Each algorithm that is allowed verifies, and the subject is the caller."""
    issuer.publish(first=(key_of(algorithm), algorithm))
    async with reading() as tokens:
        caller = await tokens.caller(issuer.token(scope="openid deepmcat.categorize deepmcat.read"))

    assert (caller.key, caller.scopes) == ("jwt:pacs", {"categorize", "read"})


@pytest.mark.parametrize(
    ("claims", "options", "scopes"),
    [
        ({"scp": ["deepmcat.read"]}, {}, {"read"}),
        ({"roles": ["deepmcat.admin", 7]}, {}, {"admin"}),
        ({"scope": "admin read"}, {}, set()),
        ({"scope": "pacs"}, {"scopes": {"pacs": ("categorize", "read")}}, {"categorize", "read"}),
        ({"realm_access": {"roles": ["deepmcat.read"]}}, {"scope_claims": ("realm_access.roles",)}, {"read"}),
        ({"https://h.example/roles": ["deepmcat.read"]}, {"scope_claims": ("https://h.example/roles",)}, {"read"}),
        ({"scope": {"deepmcat.read": True}, "roles": 7}, {}, set()),
    ],
)
async def test_scopes_come_from_claims(issuer: Issuer, reading: Any, claims: Any, options: Any, scopes: Any) -> None:
    """A claim of words or of a list grants what the settings say it means, and nothing else does."""
    async with reading(**options) as tokens:
        assert (await tokens.caller(issuer.token(**claims))).scopes == scopes


def forged(issuer: Issuer, header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token put together by hand, as an attacker would."""
    parts = [json.dumps(part).encode() for part in (header, issuer.claims(sub=CANARY))]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return (signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")).decode()


def hmac_with_the_public_key(issuer: Issuer) -> str:
    return forged(
        issuer,
        {"alg": "HS256", "kid": "first", "typ": "JWT"},
        lambda signed: hmac.new(issuer.public_pem(), signed, hashlib.sha256).digest(),
    )


BAD: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "expired": (lambda i: i.token(sub=CANARY, exp=1), "has expired"),
    "not yet": (lambda i: i.token(sub=CANARY, nbf=2**40), "not valid yet"),
    "audience": (lambda i: i.token(sub=CANARY, aud=CANARY), "another audience"),
    "no audience": (lambda i: i.token(sub=CANARY, aud=None), "lacks a claim"),
    "issuer": (lambda i: i.token(sub=CANARY, iss=CANARY), "another issuer"),
    "no expiry": (lambda i: i.token(sub=CANARY, exp=None), "lacks a claim"),
    "no subject": (lambda i: i.token(sub=None, name=CANARY), "lacks a claim"),
    "empty subject": (lambda i: i.token(sub="", name=CANARY), "1 to 255 characters"),
    "long subject": (lambda i: i.token(sub=CANARY * 40), "1 to 255 characters"),
    "none": (lambda i: forged(i, {"alg": "none", "kid": "first"}, lambda _: b""), "algorithm that is not allowed"),
    "HMAC": (hmac_with_the_public_key, "algorithm that is not allowed"),
    "algorithm of a list": (lambda i: forged(i, {"alg": ["RS256"], "kid": "first"}, lambda _: b"x"), "not"),
    "algorithm of another key": (
        lambda i: jwt.encode(i.claims(), key_of("ES256"), algorithm="ES256", headers={"kid": "first"}),
        "its key is not for",
    ),
    "algorithm the key is not bound to": (
        lambda i: jwt.encode(i.claims(), rsa_key(0), algorithm="PS256", headers={"kid": "first"}),
        "its key is not for",
    ),
    "algorithm not allowed": (
        lambda i: jwt.encode(i.claims(), rsa_key(0), algorithm="RS512", headers={"kid": "first"}),
        "allowed are ES256, EdDSA, PS256, RS256",
    ),
    "signed by somebody else": (
        lambda i: jwt.encode(i.claims(), rsa_key(1), algorithm="RS256", headers={"kid": "first"}),
        "signature does not hold",
    ),
    "a key of its own": (
        lambda i: jwt.encode(i.claims(), rsa_key(1), algorithm="RS256", headers={"kid": CANARY, "jku": "https://evil"}),
        "does not publish",
    ),
    "changed": (lambda i: i.token(sub=CANARY)[:-8] + "AAAAAAAA", "signature does not hold"),
    "a log-out notice": (lambda i: i.token(sub=CANARY, headers={"typ": "logout+jwt"}), "another kind"),
    "critical": (lambda i: i.token(sub=CANARY, headers={"crit": ["x"], "x": 1}), "not a JSON Web Token|another kind"),
    "not a token": (lambda i: CANARY, "not a JSON Web Token"),
    "nested": (lambda i: base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.eA", "not a JSON Web Token"),
    "large": (lambda i: i.token(sub=CANARY, padding="x" * 20000), "at most 16384"),
    "text": (lambda i: "ü.ü.ü", "not a JSON Web Token"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_token_is_nobody_s(issuer: Issuer, reading: Any, kind: str) -> None:
    """Whatever is wrong with a token, it is Unauthenticated, with a sentence that repeats nothing of it."""
    make, sentence = BAD[kind]
    async with reading() as tokens:
        with pytest.raises(Unauthenticated, match=sentence) as caught:
            await tokens.caller(make(issuer))

    assert CANARY not in str(caught.value)


async def test_clocks_may_differ_a_little(issuer: Issuer, reading: Any) -> None:
    """A token that expired within the leeway still holds."""
    expired = issuer.claims()["iat"] - 3
    async with reading() as tokens:
        assert (await tokens.caller(issuer.token(exp=expired))).key == "jwt:pacs"
    async with reading(leeway_s=0) as tokens:
        with pytest.raises(Unauthenticated, match="expired"):
            await tokens.caller(issuer.token(exp=expired))


async def test_a_token_without_a_key_id_means_the_only_key(issuer: Issuer, reading: Any) -> None:
    """Without `kid` there is no choosing: one key verifies, of two none is tried."""
    bare = jwt.encode(issuer.claims(), rsa_key(0), algorithm="RS256")
    async with reading() as tokens:
        assert (await tokens.caller(bare)).key == "jwt:pacs"
    issuer.publish(first=(rsa_key(0), "RS256"), second=(rsa_key(1), "RS256"))
    async with reading() as tokens:
        with pytest.raises(Unauthenticated):
            await tokens.caller(bare)


async def test_a_new_key_is_fetched_when_it_is_first_seen(issuer: Issuer, reading: Any) -> None:
    """After a rotation tokens of the new key hold at once, and those of the withdrawn one no longer."""
    old = issuer.token()
    async with reading() as tokens:
        await tokens.caller(old)
        issuer.publish(second=(rsa_key(1), "RS256"))
        await tokens.caller(old)  # known, so nothing is fetched
        assert (await tokens.caller(issuer.token("second"))).key == "jwt:pacs"
        with pytest.raises(Unauthenticated, match="does not publish"):
            await tokens.caller(old)


async def refusal_of(tokens: Tokens, token: str) -> str | None:
    """Why a token is not believed; None where it is."""
    try:
        await tokens.caller(token)
    except Unauthenticated as error:
        return str(error)
    return None


async def test_a_withdrawn_key_goes_without_anybody_asking(issuer: Issuer, reading: Any) -> None:
    """Keys are fetched regularly, so what an issuer withdraws ends though its tokens are well known."""
    old = issuer.token()
    async with reading(refresh_s=0.01) as tokens:
        await tokens.caller(old)
        issuer.publish(second=(rsa_key(1), "RS256"))
        async with asyncio.timeout(10):
            while (why := await refusal_of(tokens, old)) is None:  # noqa: ASYNC110  # the fetch has no event
                await asyncio.sleep(0.01)

    assert "does not publish" in why


async def test_invented_key_ids_do_not_make_the_server_fetch(
    issuer: Issuer, reading: Any, web: Any, clock: Clock
) -> None:
    """Unknown ids lead to a few fetches, then to one in half a minute; known keys work meanwhile."""
    web.answer = (200, {}, issuer.jwks)
    async with reading(web.url) as tokens:
        for number in range(20):
            with pytest.raises(Unauthenticated):
                await tokens.caller(issuer.token(headers={"kid": f"invented {number}"}))
        await tokens.caller(issuer.token())
        asked = web.asked
        clock.now += 31
        with pytest.raises(Unauthenticated):
            await tokens.caller(issuer.token(headers={"kid": "invented"}))

    assert (asked, web.asked) == (1 + 3, 1 + 3 + 1)


async def test_calls_share_a_fetch_and_a_slow_one_stops_nobody_else(
    issuer: Issuer, reading: Any, web: Any, until: Any
) -> None:
    """While keys are fetched, calls with known keys go on, and those that wait share one fetch."""
    web.answer = (200, {}, issuer.jwks)
    async with reading(web.url) as tokens:
        known = issuer.token()
        issuer.publish(first=(rsa_key(0), "RS256"), second=(rsa_key(1), "RS256"))
        web.answer = (200, {}, issuer.jwks)
        web.free.clear()
        waiting = [asyncio.create_task(tokens.caller(issuer.token("second"))) for _ in range(5)]
        await until(lambda: web.asked == 2)
        await tokens.caller(known)
        assert not any(task.done() for task in waiting)
        waiting.pop().cancel()
        web.free.set()
        assert {(await task).key for task in waiting} == {"jwt:pacs"}

    assert web.asked == 2


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b""),
        (302, {"Location": "/elsewhere"}, b""),
        (200, {}, b"x" * (2**20 + 1)),
        (200, {}, b"[" * 100000),
        (200, {}, b"\xff"),
        (200, {}, b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]}'),
        (200, {}, b'{"keys": [{"kty": "RSA", "kid": "first", "alg": "none"}, 7, {"kty": "EC", "kid": []}]}'),
    ],
    ids=["500", "redirect", "large", "nested", "not text", "shared secret", "broken keys"],
)
async def test_keys_go_on_where_they_cannot_be_fetched(
    issuer: Issuer, reading: Any, web: Any, registry: CollectorRegistry, clock: Clock, answer: Any
) -> None:
    """An answer that is no key set changes nothing and is counted; after a day the keys are too old to believe."""
    web.elsewhere = issuer.jwks
    web.answer = (200, {}, issuer.jwks)
    async with reading(web.url) as tokens:
        web.answer = answer
        with pytest.raises(Unauthenticated):
            await tokens.caller(issuer.token(headers={"kid": "unknown"}))
        await tokens.caller(issuer.token())
        clock.now += MAX_STALE_S + 1
        with pytest.raises(Unauthenticated, match="too old"):
            await tokens.caller(issuer.token())

    assert registry.get_sample_value("deepmcat_key_fetches_total", {"result": "ok"}) == 1
    assert registry.get_sample_value("deepmcat_key_fetches_total", {"result": "failed"}) == 1


async def test_an_issuer_that_is_away_at_the_start_may_come_later(issuer: Issuer, reading: Any, web: Any) -> None:
    """The server starts without keys from a URL, refuses tokens, and believes them as soon as it has the keys."""
    web.answer = (503, {}, b"")
    async with reading(web.url) as tokens:
        with pytest.raises(Unauthenticated):
            await tokens.caller(issuer.token())
        web.answer = (200, {}, issuer.jwks)
        assert (await tokens.caller(issuer.token())).key == "jwt:pacs"


async def test_a_file_without_keys_stops_the_start(issuer: Issuer, reading: Any, tmp_path: Path) -> None:
    """A file that is missing or holds no key is a mistake of the settings."""
    for content in (b"", b"{}", b'{"keys": []}', b"not JSON"):
        issuer.path.write_bytes(content)
        with pytest.raises(ConfigError, match="jwt_jwks"):
            async with reading():
                pass
    with pytest.raises(ConfigError, match="no such file"):
        async with reading(str(tmp_path / "nowhere.json")):
            pass
