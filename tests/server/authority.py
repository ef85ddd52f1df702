"""An authority that makes certificates and an issuer that signs tokens, for tests."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

ISSUER, AUDIENCE = "https://issuer.example/realms/hospital", "deepmcat"
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate and its key, in PEM."""

    cert: bytes
    key: bytes

    def write(self, folder: Path) -> dict[str, str]:
        """The files, as settings name them."""
        (folder / "tls.crt").write_bytes(self.cert)
        (folder / "tls.key").write_bytes(self.key)
        return {"tls_cert": str(folder / "tls.crt"), "tls_key": str(folder / "tls.key")}


class Authority:
    """A certificate authority."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key(), (-1, 30))
        certificate = builder.add_extension(x509.BasicConstraints(True, None), True).sign(self._key, hashes.SHA256())
        self.cert = certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str = "server", *sans: x509.GeneralName, days: tuple[float, float] = (-1, 10)) -> Issued:
        """A certificate for a common name and further names, valid between so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), days)
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), False)
        return Issued(
            cert=builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM),
            key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def _builder(self, subject: x509.Name, public_key: Any, days: tuple[float, float]) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=public_key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now + datetime.timedelta(days=days[0]),
            not_valid_after=now + datetime.timedelta(days=days[1]),
        )


@functools.cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    """One of a few keys: making them takes time."""
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def key_of(algorithm: str) -> Any:
    """A key that an algorithm takes."""
    if algorithm.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else rsa_key(0)


class Issuer:
    """Signs tokens, and publishes its keys in a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jwks.json"
        self.keys: dict[str, tuple[Any, str]] = {}
        self.publish(first=(rsa_key(0), "RS256"))

    def publish(self, **keys: tuple[Any, str]) -> None:
        """Only these keys from now on: each with its algorithm, by id."""
        self.keys = keys
        self.path.write_bytes(self.jwks)

    @property
    def jwks(self) -> bytes:
        """The JSON Web Key Set."""
        rows = []
        for kid, (key, algorithm) in self.keys.items():
            row = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
            rows.append(row | {"kid": kid, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": rows}).encode()

    def token(self, kid: str = "first", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that holds, but for `headers` and `claims`; None takes one away."""
        key, algorithm = self.keys[kid]
        return jwt.encode(self.claims(**claims), key, algorithm=algorithm, headers={"kid": kid} | (headers or {}))

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Those of a good token, with changes."""
        now = time.time()
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "pacs", "iat": now, "exp": now + 60}
        return {name: value for name, value in (good | claims).items() if value is not None}

    def public_pem(self, kid: str = "first") -> bytes:
        """The public key, as everybody has it."""
        return self.keys[kid][0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def settings(self) -> dict[str, str]:
        """Those of a server that trusts this issuer."""
        return {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(self.path)}
