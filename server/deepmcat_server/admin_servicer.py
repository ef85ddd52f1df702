"""deepmcat.v1.AdminService: what an administrator may do with artifacts, each action audited.

Who may call it is decided before it is reached (access.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeVar

from deepmcat.v1 import admin_pb2 as pb
from deepmcat.v1 import admin_pb2_grpc as pb_grpc
from deepmcat_core.errors import DeepmcatError
from deepmcat_server.errors import InvalidRequest
from deepmcat_server.interceptors import CALL
from deepmcat_server.inventory import Entry, entry, inventory
from deepmcat_server.lines import DEFAULT, Line
from deepmcat_server.rollout import Rollout
from deepmcat_server.status import reason_of

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"].full_name

STATES = {
    "available": pb.ARTIFACT_STATE_AVAILABLE,
    "loaded": pb.ARTIFACT_STATE_LOADED,
    "in_force": pb.ARTIFACT_STATE_IN_FORCE,
}

Context = Any  # grpc.aio.ServicerContext, generic in the messages of each method
Result = TypeVar("Result")


class Record(Protocol):
    """Writes to the audit log: `audit.record`."""

    def __call__(
        self,
        action: str,
        caller: str,
        outcome: Literal["done", "refused", "failed"],
        *,
        artifact_name: str | None = None,
        artifact_id: str | None = None,
        previous_artifact_id: str | None = None,
        reason: str | None = None,
    ) -> None:
        """One line."""


class AdminServicer(pb_grpc.AdminServiceServicer):
    """Answers calls. Errors leave as exceptions, as those of the CategorizationServicer do."""

    def __init__(self, rollout: Rollout, record: Record) -> None:
        self._rollout = rollout
        self._lines = rollout.lines
        self._record = record
        self._actions: set[asyncio.Task[Any]] = set()

    async def ListArtifacts(  # noqa: N802
        self, request: pb.ListArtifactsRequest, context: Context
    ) -> pb.ListArtifactsResponse:
        """What is loaded, and what could be."""
        return pb.ListArtifactsResponse(artifacts=map(_status, await inventory(self._rollout)))

    async def LoadArtifact(self, request: pb.LoadArtifactRequest, context: Context) -> pb.LoadArtifactResponse:  # noqa: N802
        """Load beside what is in force."""
        name = request.name or DEFAULT
        line, _ = await self._act("LoadArtifact", name, lambda: self._rollout.load(name, request.version))
        return pb.LoadArtifactResponse(artifact=_status(entry(self._rollout, name, line)))

    async def ActivateArtifact(  # noqa: N802
        self, request: pb.ActivateArtifactRequest, context: Context
    ) -> pb.ActivateArtifactResponse:
        """Put in force."""
        name = request.name or DEFAULT
        if request.version and request.artifact_id:
            raise InvalidRequest("version and artifact_id are given; one of them says which artifact", "artifact_id")

        async def activate() -> Line:
            if request.artifact_id:
                return await self._rollout.activate_loaded(name, request.artifact_id)
            return await self._rollout.activate(name, request.version)

        line, previous = await self._act("ActivateArtifact", name, activate)
        return pb.ActivateArtifactResponse(
            artifact=_status(entry(self._rollout, name, line)), previous_artifact_id=previous
        )

    async def RollbackArtifact(  # noqa: N802
        self, request: pb.RollbackArtifactRequest, context: Context
    ) -> pb.RollbackArtifactResponse:
        """Go back."""
        name = request.name or DEFAULT
        line, previous = await self._act("RollbackArtifact", name, lambda: self._rollout.roll_back(name))
        return pb.RollbackArtifactResponse(
            artifact=_status(entry(self._rollout, name, line)), previous_artifact_id=previous
        )

    async def UnloadArtifact(self, request: pb.UnloadArtifactRequest, context: Context) -> pb.UnloadArtifactResponse:  # noqa: N802
        """Take out."""
        await self._act("UnloadArtifact", "", lambda: self._rollout.unload(request.artifact_id))
        return pb.UnloadArtifactResponse()

    async def _act(self, action: str, name: str, change: Callable[[], Awaitable[Line]]) -> tuple[Line, str]:
        """Do it and audit it, to the end also where the caller leaves; the line, and what was in force before."""
        task = asyncio.create_task(self._audited(action, name, change))
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)
        return await asyncio.shield(task)

    async def _audited(self, action: str, name: str, change: Callable[[], Awaitable[Line]]) -> tuple[Line, str]:
        before = self._lines.in_force.get(name)
        previous = before.artifact_id if before else ""
        known = name if before else None  # never a caller's own words
        caller = CALL.get().caller
        try:
            line = await change()
        except Exception as error:
            outcome: Literal["refused", "failed"] = "refused" if isinstance(error, DeepmcatError) else "failed"
            self._record(action, caller, outcome, artifact_name=known, reason=reason_of(error))
            raise
        switched = line is not before and self._lines.in_force.get(name) is line
        self._record(
            action,
            caller,
            "done",
            artifact_name=known,
            artifact_id=line.artifact_id,
            previous_artifact_id=previous if switched else None,
        )
        return line, previous


def _status(of: Entry) -> pb.ArtifactStatus:
    status = pb.ArtifactStatus(
        name=of.name,
        version=of.version,
        artifact_id=of.artifact_id,
        state=STATES[of.state],
        size_bytes=of.size_bytes,
    )
    if of.line is not None:
        status.catalog_version = of.line.categorizer.catalog.version
        status.created_at = of.line.categorizer.artifact.manifest.created_at
        status.images = of.line.images
    return status
