"""What stands between a caller and the service, put together from the settings."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from deepmcat_core import logs
from deepmcat_server import audit, caller_ids
from deepmcat_server.addresses import parse_address
from deepmcat_server.caller_ids import CallerIds
from deepmcat_server.callers import Callers
from deepmcat_server.certificates import Certificates, Files
from deepmcat_server.config import Settings
from deepmcat_server.metrics import Metrics
from deepmcat_server.quotas import Quotas
from deepmcat_server.signing_keys import SigningKeys, is_url
from deepmcat_server.tokens import Tokens

LOG = logs.logger("server.security")


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """The parts. credentials: None: plaintext."""

    credentials: grpc.ServerCredentials | None
    callers: Callers
    caller_ids: CallerIds
    quotas: Quotas


@asynccontextmanager
async def opened_security(settings: Settings, metrics: Metrics) -> AsyncIterator[Security]:
    """The parts, with what they watch and fetch. Raises ConfigError."""
    key_file = settings.caller_id_key_file
    async with AsyncExitStack() as stack:
        stack.enter_context(audit.opened(settings.audit_file))
        yield Security(
            credentials=await _credentials(settings, metrics, stack),
            callers=Callers(
                tokens=await _tokens(settings, metrics, stack),
                certificates=settings.certificate_scopes,
                anonymous=settings.anonymous_scopes,
            ),
            caller_ids=CallerIds(caller_ids.read_key(key_file) if key_file is not None else None),
            quotas=Quotas(settings.quota, settings.quotas),
        )


async def _credentials(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> grpc.ServerCredentials | None:
    if not settings.authenticates and not parse_address(settings.listen).is_loopback:
        logs.event(LOG, logging.WARNING, "callers are not authenticated", address=settings.listen)
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    files = Files(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
    certificates = Certificates(files, poll_s=settings.credentials_poll_s, metrics=metrics)
    return (await stack.enter_async_context(certificates)).credentials()


async def _tokens(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Tokens | None:
    if settings.jwt_issuer is None or settings.jwt_audience is None or settings.jwt_jwks is None:
        return None
    refresh_s = settings.jwt_refresh_s if is_url(settings.jwt_jwks) else settings.credentials_poll_s
    keys = SigningKeys(settings.jwt_jwks, refresh_s=refresh_s, metrics=metrics)
    return Tokens(
        await stack.enter_async_context(keys),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        algorithms=settings.jwt_algorithms,
        leeway_s=settings.jwt_leeway_s,
        scope_claims=settings.jwt_scope_claims,
        scopes=settings.jwt_scopes,
    )
