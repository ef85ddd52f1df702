"""Who calls: keys, patterns, and what goes before what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from deepmcat_server.callers import Caller, Callers, certificate_key, fits, peer_key
from deepmcat_server.errors import Unauthenticated


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is asked of a call's context."""

    metadata: tuple[tuple[str, str], ...] = ()
    certificate: dict[str, list[bytes]] = field(default_factory=dict)

    def invocation_metadata(self) -> Any:
        return self.metadata

    def auth_context(self) -> Any:
        return self.certificate

    def peer(self) -> str:
        return "ipv4:10.1.2.3:50000"


class Tokens:
    """Believes one token."""

    async def caller(self, token: str) -> Caller:
        if token != "good":
            raise Unauthenticated("no")
        return Caller(key="jwt:a", scopes=frozenset({"read"}))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


CERTIFICATE = {"peer_dns": [b"pacs.example"]}


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("**", "jwt:anybody", True),
        ("spiffe://h.example/ns/*/sa/pacs", "spiffe://h.example/ns/radiology/sa/pacs", True),
        ("spiffe://h.example/ns/*/sa/pacs", "spiffe://h.example/ns/x/sa/y/sa/pacs", False),
        ("spiffe://h.example/**", "spiffe://h.example/ns/x/sa/y", True),
        ("spiffe://h.example/**", "spiffe://h.example.evil/ns/x", False),
        ("dns:*.example", "dns:pacs.example", True),
        ("dns:*.example", "dns:a.pacs.example", False),
        ("dns:*.example", "dns:pacsXexample", False),
        ("dns:pacs.example", "cn:pacs.example", False),
        ("cn:PACS 1", "cn:PACS 12", False),
        ("jwt:pacs-*", "jwt:pacs-7", True),
    ],
)
def test_patterns_fit_what_they_say(pattern: str, key: str, expected: bool) -> None:
    """A star is one part of a name, two are anything, and everything else is itself."""
    assert fits(pattern, key) is expected


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ({"peer_uri": [b"https://x", b"spiffe://h/a"], "peer_dns": [b"d"], "x509_common_name": [b"c"]}, "spiffe://h/a"),
        ({"peer_uri": [b"https://x"], "peer_dns": [b"d", b"e"], "x509_common_name": [b"c"]}, "dns:d"),
        ({"x509_common_name": [b"c"]}, "cn:c"),
        ({"x509_common_name": [b"spiffe://h/a"]}, "cn:spiffe://h/a"),
        ({"transport_security_type": [b"ssl"]}, None),
    ],
)
def test_a_certificate_s_name(certificate: Any, key: str | None) -> None:
    """The SPIFFE ID, else the first DNS name, else the common name, which cannot pass for another kind."""
    assert certificate_key(certificate) == key


def test_two_spiffe_ids_are_none() -> None:
    """A certificate with two SPIFFE IDs says nobody."""
    with pytest.raises(Unauthenticated, match="several SPIFFE IDs"):
        certificate_key({"peer_uri": [b"spiffe://h/a", b"spiffe://h/b"]})


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("ipv4:10.0.0.1:50000", "ip:10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "ip:2001:db8::1"),
        ("unix:", "ip:unix"),
    ],
)
def test_an_address_is_a_key_without_its_port(peer: str, key: str) -> None:
    """Another connection of the same machine is the same caller."""
    assert peer_key(peer) == key


async def test_a_token_goes_before_a_certificate() -> None:
    """The token says whom a call is for; one that does not hold is not made up for by the certificate."""
    callers = Callers(tokens=Tokens(), certificates={"dns:*.example": ("categorize",), "dns:pacs.*": ("admin",)})

    assert (await callers.of(Context(metadata=bearer("good"), certificate=CERTIFICATE))).key == "jwt:a"
    assert await callers.of(Context(certificate=CERTIFICATE)) == Caller(
        key="dns:pacs.example", scopes=frozenset({"categorize", "admin"})
    )
    with pytest.raises(Unauthenticated):
        await callers.of(Context(metadata=bearer("bad"), certificate=CERTIFICATE))


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Basic cGFjczpwYWNz"),),
        (("authorization", "Bearer "),),
        (("authorization", "good"),),
        (*bearer("good"), *bearer("good")),
    ],
)
async def test_without_a_bearer_token_nobody_calls(metadata: Any) -> None:
    """Where tokens are read, there is one, it is a bearer token, and it is the only one."""
    with pytest.raises(Unauthenticated):
        await Callers(tokens=Tokens(), anonymous=("categorize",)).of(Context(metadata=metadata))


async def test_a_certificate_that_no_pattern_fits_may_do_nothing() -> None:
    """Being signed by the authority is not being let in."""
    caller = await Callers(certificates={"dns:*.other": ("read",)}).of(Context(certificate=CERTIFICATE))
    assert caller == Caller(key="dns:pacs.example", scopes=frozenset())


async def test_where_nobody_asks_the_address_is_the_caller() -> None:
    """Without tokens and certificates everybody may do the same, also with a token that is meant for others."""
    caller = await Callers(anonymous=("read",)).of(Context(metadata=bearer("other")))
    assert caller == Caller(key="ip:10.1.2.3", scopes=frozenset({"read"}))
