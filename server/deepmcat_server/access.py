"""Who may call what: each call has a caller and each method a scope, before a place is taken or a byte is read."""

from __future__ import annotations

from deepmcat_server import audit
from deepmcat_server.callers import Callers
from deepmcat_server.errors import PermissionDenied
from deepmcat_server.gate import STREAMS
from deepmcat_server.interceptors import CALL, Before, Context
from deepmcat_server.quotas import Quotas
from deepmcat_server.scopes import is_open, required


class Access(Before):
    """Tells the caller, checks its scope, and refuses unary calls of images where its quota is used up."""

    def __init__(self, callers: Callers, quotas: Quotas) -> None:
        self._callers = callers
        self._quotas = quotas

    async def before(self, service: str, method: str, context: Context) -> None:
        """Let the call in, or raise Unauthenticated, PermissionDenied, QuotaExceeded."""
        if not is_open(service):
            await self._admit(service, method, context)

    async def _admit(self, service: str, method: str, context: Context) -> None:
        caller = await self._callers.of(context)
        CALL.get().caller = caller.key
        scope = required(service, method)
        if scope is None or scope not in caller.scopes:
            if scope == "admin":
                audit.record(method, caller.key, "refused", reason=PermissionDenied.reason)
            raise PermissionDenied(_needed(scope))
        if scope == "categorize" and method not in STREAMS:
            self._quotas.check(caller.key)


def _needed(scope: str | None) -> str:
    if scope is None:
        return "this method has no scope, so nobody may call it"
    return f"this method needs the scope {scope}, which the caller does not have"
