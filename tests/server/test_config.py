"""Settings: where they come from, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepmcat_core.artifact import Artifact
from deepmcat_core.errors import ConfigError
from deepmcat_server.addresses import parse_address
from deepmcat_server.config import load
from deepmcat_server.opening import engine_opener

TLS = ["tls_cert=cert", "tls_key=key"]
MTLS = [*TLS, "tls_client_ca=ca"]
JWT = ["jwt_issuer=https://issuer.example", "jwt_audience=deepmcat", "jwt_jwks=https://issuer.example/certs"]
OPEN = {"listen": "0.0.0.0:50051", "insecure": True}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Settings of whoever runs the tests play no part."""
    for name in ("LISTEN", "ADMIN", "MAX_QUEUE", "DRAIN_S"):
        monkeypatch.delenv(f"DEEPMCAT_{name}", raising=False)


def test_flags_over_variables_over_file_over_defaults(monkeypatch, tmp_path: Path):
    """Each source wins over the ones behind it, setting by setting."""
    file = tmp_path / "server.toml"
    file.write_text("max_queue = 1\ndrain_s = 1\nmax_batch = 1\ngrace_s = 1\n")
    monkeypatch.setenv("DEEPMCAT_MAX_QUEUE", "2")
    monkeypatch.setenv("DEEPMCAT_DRAIN_S", "2")
    monkeypatch.setenv("DEEPMCAT_DATA", "not a setting")
    settings = load(flags={"listen": "127.0.0.1:3", "admin": None}, sets=["drain_s=3", "grace_s=3"], file=file)

    assert (settings.max_batch, settings.max_queue, settings.drain_s, settings.grace_s) == (1, 2, 3, 3)
    assert (settings.listen, settings.admin) == ("127.0.0.1:3", "127.0.0.1:9464")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"sets": ["max_qeue=3"]}, "Did you mean 'max_queue'"),
        ({"sets": ["max_queue=0"]}, "max_queue.* is 0"),
        ({"sets": ["max_queue"]}, "KEY=VALUE"),
        ({"sets": ["log_level=loud"]}, "log_level"),
        ({"flags": {"listen": "50051"}}, "HOST:PORT is needed"),
        ({"flags": {"listen": "127.0.0.1:70000"}}, "HOST:PORT is needed"),
        ({"file": Path("nowhere.toml")}, "nowhere.toml"),
        ({"flags": {"listen": "0.0.0.0:50051"}}, "--insecure"),
        ({"flags": {"admin": "[::]:9464"}}, "--insecure"),
        ({"flags": {"listen": "example.org:50051"}}, "--insecure"),
        ({"flags": {"listen": "0.0.0.0:50051"}}, "tls_cert"),
        ({"flags": {"admin": "0.0.0.0:9464"}, "sets": TLS}, "admin .* speaks plaintext"),
        ({"sets": TLS[:1]}, "tls_cert and tls_key belong together"),
        ({"sets": ["tls_client_ca=ca"]}, "tls_client_ca needs tls_cert"),
        ({"sets": [*TLS, "tls_client_ca=ca"]}, "tls_client_ca needs certificate_scopes"),
        ({"sets": ["certificate_scopes={'**'=['read']}"]}, "certificate_scopes needs tls_client_ca"),
        ({"sets": [*MTLS, "certificate_scopes={'*.example'=['read']}"]}, "begins with jwt:, spiffe://, dns:"),
        ({"sets": [*MTLS, "certificate_scopes={'**'=['write']}"]}, "'categorize', 'read' or 'admin'"),
        ({"sets": JWT[:2]}, "jwt_issuer, jwt_audience and jwt_jwks belong together"),
        ({"sets": [*JWT[:2], "jwt_jwks=http://issuer.example/certs"]}, "an https URL is needed"),
        ({"sets": [*JWT[:2], "jwt_jwks=file:///etc/keys"]}, "an https URL is needed"),
        ({"sets": [*JWT, "jwt_algorithms=['HS256']"]}, "jwt_algorithms"),
        ({"sets": [*JWT, "jwt_algorithms=['none']"]}, "jwt_algorithms"),
        ({"sets": [*JWT, "jwt_algorithms=[]"]}, "jwt_algorithms"),
        ({"sets": ["quotas={'**'={images_per_s=-1}}"]}, "quotas"),
        ({"sets": ["quotas={'**'={images=1}}"]}, "quotas"),
        ({"flags": OPEN, "sets": ["anonymous_scopes=['admin']"]}, "anonymous_scopes has admin"),
        ({"flags": {"precision": "int8"}}, "'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"flags": {"precision": "float32", "encoder": "triton://127.0.0.1:1/m"}}, "leave one of them out"),
    ],
)
def test_mistakes_get_a_sentence(arguments, sentence):
    """A wrong key, value, file or an open plaintext port is a ConfigError that names the way out."""
    with pytest.raises(ConfigError, match=sentence):
        load(**arguments)


def test_bad_variable_gets_a_sentence(monkeypatch):
    """A variable out of range is refused as a setting is."""
    monkeypatch.setenv("DEEPMCAT_MAX_QUEUE", "none")
    with pytest.raises(ConfigError, match="max_queue"):
        load()


def test_plaintext_beyond_this_machine_only_when_asked_for():
    """--insecure is the way to listen on other addresses without TLS."""
    assert load(flags={"listen": "0.0.0.0:1", "insecure": True}).listen == "0.0.0.0:1"


@pytest.mark.parametrize(
    "sets",
    [
        TLS,
        [*MTLS, "certificate_scopes={'spiffe://h.example/**'=['categorize', 'admin']}"],
        [*MTLS, *JWT],
        [*TLS, *JWT, "anonymous_scopes=['admin']"],
        [*TLS, *JWT[:2], "jwt_jwks=/keys/jwks.json"],
        [*TLS, *JWT[:2], "jwt_jwks=http://127.0.0.1:8080/certs"],
    ],
)
def test_beyond_this_machine_with_tls(sets):
    """With a certificate a server may listen anywhere, and ask for client certificates, tokens or both."""
    assert load(flags={"listen": "0.0.0.0:1"}, sets=sets).tls_cert == Path("cert")


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0, True),
        ("[::1]:5", "::1", 5, True),
        ("localhost:6", "localhost", 6, True),
        ("10.0.0.1:7", "10.0.0.1", 7, False),
        ("[::]:8", "::", 8, False),
    ],
)
def test_addresses(text, host, port, loopback):
    """Addresses are read and written alike, and loopback is told from the rest."""
    address = parse_address(text)
    assert (address.host, address.port, address.is_loopback, str(address)) == (host, port, loopback, text)


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nearly a setting was meant as one; what Kubernetes sets for a Service called deepmcat was not."""
    for name in ("SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR", "SERVICE_PORT_ADMIN"):
        monkeypatch.setenv(f"DEEPMCAT_{name}", "10.0.0.1")
    load()
    monkeypatch.setenv("DEEPMCAT_MAX_QUEU", "3")

    with pytest.raises(ConfigError, match="DEEPMCAT_MAX_QUEU; did you mean DEEPMCAT_MAX_QUEUE"):
        load()


def test_the_precision_reaches_the_engine(artifact: Artifact):
    """A server that is told a precision opens no artifact that did not pass in it."""
    opened = engine_opener(load(flags={"device": "cpu", "precision": "bfloat16"}))

    with pytest.raises(ConfigError, match="did not pass for this artifact on cpu"):
        opened(artifact)
