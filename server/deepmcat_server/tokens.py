"""Bearer tokens: JSON Web Tokens (RFC 7519) of one OpenID Connect issuer, verified as RFC 8725 advises.

Signed with a public key of the issuer, by an algorithm of ALGORITHMS that fits the key; `none` and shared secrets
(HMAC) are not among them. Of this issuer, for this audience, not expired, and with a subject.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import jwt

from deepmcat_server.callers import Caller
from deepmcat_server.errors import Unauthenticated
from deepmcat_server.scopes import Scope
from deepmcat_server.signing_keys import ALGORITHMS, SigningKey, SigningKeys

TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""What a token may say it is (RFC 8725, 3.11): a log-out notice of the same issuer is signed with the same keys."""

SCOPES: dict[str, tuple[Scope, ...]] = {
    "deepmcat.categorize": ("categorize",),
    "deepmcat.read": ("read",),
    "deepmcat.admin": ("admin",),
}
"""What always grants a scope where it is in a claim of scopes. Settings add to it."""

MAX_TOKEN_BYTES = 16 * 1024
MAX_SUBJECT_CHARACTERS = 255  # OpenID Connect Core 1.0, section 2


class Tokens:
    """Reads the tokens of one issuer.

    scope_claims: where a token says what it grants; dots lead into nested claims. scopes: what a value there means,
    beside SCOPES.
    """

    def __init__(
        self,
        keys: SigningKeys,
        *,
        issuer: str,
        audience: str,
        algorithms: Collection[str],
        leeway_s: float,
        scope_claims: Collection[str],
        scopes: Mapping[str, Collection[Scope]],
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = frozenset(algorithms)
        self._leeway_s = leeway_s
        self._scope_claims = tuple(scope_claims)
        self._scopes = SCOPES | {value: tuple(granted) for value, granted in scopes.items()}

    async def caller(self, token: str) -> Caller:
        """Whom a token speaks for, and what it grants. Raises Unauthenticated; nothing of the token is in a message."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"the token has {len(token)} bytes; at most {MAX_TOKEN_BYTES} are allowed")
        algorithm, kid = self._header(token)
        claims = self._claims(token, algorithm, await self._keys.find(kid))
        return Caller(key=f"jwt:{claims['sub']}", scopes=self._granted(claims))

    def _header(self, token: str) -> tuple[str, str | None]:
        """The algorithm and the key's id, of a header that nothing vouches for yet."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, RecursionError) as error:
            raise Unauthenticated("the token is not a JSON Web Token") from error
        algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            allowed = ", ".join(sorted(self._algorithms))
            raise Unauthenticated(f"the token is signed by an algorithm that is not allowed; allowed are {allowed}")
        if not isinstance(kind, str) or kind.lower() not in TYPES or "crit" in header:
            raise Unauthenticated("the token is of another kind than an access token")
        return algorithm, kid

    def _claims(self, token: str, algorithm: str, key: SigningKey) -> dict[str, Any]:
        """The claims, verified."""
        kty, curve = ALGORITHMS[algorithm]
        if key.kty != kty or curve not in (None, key.crv) or key.algorithm not in (None, algorithm):
            raise Unauthenticated("the token is signed by an algorithm that its key is not for")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public_key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_why(error)) from error
        if not 0 < len(claims["sub"]) <= MAX_SUBJECT_CHARACTERS:
            raise Unauthenticated(f"the token's subject must have 1 to {MAX_SUBJECT_CHARACTERS} characters")
        return claims

    def _granted(self, claims: dict[str, Any]) -> frozenset[Scope]:
        values = (value for path in self._scope_claims for value in _values(_claim(claims, path)))
        return frozenset(scope for value in values for scope in self._scopes.get(value, ()))


def _claim(claims: dict[str, Any], path: str) -> Any:
    """A claim by name, or by the dots of `realm_access.roles`; a name that has dots itself goes first."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _values(claim: Any) -> list[str]:
    """A claim of scopes: words in a text (RFC 8693, 4.2), or a list of texts."""
    if isinstance(claim, str):
        return re.split(" +", claim)
    return [value for value in claim if isinstance(value, str)] if isinstance(claim, list) else []


def _why(error: jwt.PyJWTError) -> str:
    """A sentence of ours: PyJWT's can repeat claims."""
    match error:
        case jwt.ExpiredSignatureError():
            return "the token has expired; get a new one"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet; look at the clocks"
        case jwt.InvalidAudienceError():
            return "the token is for another audience than this server"
        case jwt.InvalidIssuerError():
            return "the token is from another issuer than this server trusts"
        case jwt.MissingRequiredClaimError():
            return "the token lacks a claim; exp, iss, aud and sub are needed"
        case jwt.InvalidSignatureError():
            return "the token's signature does not hold"
        case _:
            return "the token cannot be verified"
