"""`deepmcat artifacts list|load|activate|rollback|unload`: which artifacts a server has, and which of them answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, cast

import grpc
import typer
from rich.table import Table

from deepmcat.v1 import admin_pb2 as pb
from deepmcat.v1 import admin_pb2_grpc as pb_grpc
from deepmcat_client.commands.connecting import (
    CaOption,
    CertOption,
    KeyOption,
    Reach,
    ServerNameOption,
    ServerOption,
    TlsOption,
    TokenOption,
    reach,
)
from deepmcat_client.commands.tables import output
from deepmcat_client.errors import ArtifactNotFound, InvalidRequest
from deepmcat_client.security import authorization, check_token
from deepmcat_client.status import from_rpc
from deepmcat_client.targets import is_many, parse_targets

TIMEOUT_S = 900.0  # loading a large artifact from a network share takes its time
SHORTEST_ID = 8
STATES = {
    pb.ARTIFACT_STATE_AVAILABLE: "available",
    pb.ARTIFACT_STATE_LOADED: "loaded",
    pb.ARTIFACT_STATE_IN_FORCE: "in force",
}


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    LOAD = "load"
    ACTIVATE = "activate"
    ROLLBACK = "rollback"
    UNLOAD = "unload"


def command(
    action: Annotated[
        Action,
        typer.Argument(
            help="list: show what there is; load: have it ready; activate: put in force; rollback: put in force what "
            "was so before; unload: free its memory."
        ),
    ],
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="[ARTIFACT]", help="A version, or an id or its first digits; empty: the newest.", show_default=False
        ),
    ] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="The name that it is served under.")] = "default",
    server: ServerOption = "",
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_server_name: ServerNameOption = "",
    token_file: TokenOption = None,
) -> None:
    """Change which artifact a server answers with. It needs admin_service on the server, and the scope admin."""
    targets = parse_targets(server)
    if len(targets) != 1 or is_many(server):
        raise InvalidRequest(f"--server is {server!r}: give HOST:PORT, one server, because each is changed by itself")
    if action is Action.ROLLBACK and artifact:
        raise InvalidRequest("rollback takes no ARTIFACT: it goes to what was in force before; or activate one")
    secured = reach(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name, token_file=token_file)
    with _calling(server, secured) as call:
        _act(call, action, name, artifact)
        output().print(_table(call("ListArtifacts", pb.ListArtifactsRequest()).artifacts))


Call = Callable[[str, Any], Any]


@contextmanager
def _calling(server: str, secured: Reach) -> Iterator[Call]:
    """Calls methods of the server's AdminService by name. They raise ClientError."""
    check_token(secured.token, secured.tls, [server])
    channel = (
        grpc.insecure_channel(server) if secured.tls is None else grpc.secure_channel(server, secured.tls.credentials())
    )
    new_stub = cast("Callable[[grpc.Channel], Any]", pb_grpc.AdminServiceStub)
    with channel:
        stub = new_stub(channel)

        def call(method: str, request: Any) -> Any:
            metadata = authorization(secured.token) if secured.token is not None else ()
            try:
                return getattr(stub, method)(request, timeout=TIMEOUT_S, metadata=metadata)
            except grpc.RpcError as raised:
                error = cast("grpc.aio.AioRpcError", raised)  # which has all that is read of it
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise InvalidRequest(
                        f"{server} takes no such calls; start it with --set admin_service=true"
                    ) from None
                raise from_rpc(error, server) from None

        yield call


def _act(call: Call, action: Action, name: str, artifact: str) -> None:
    match action:
        case Action.LIST:
            return
        case Action.LOAD:
            call("LoadArtifact", pb.LoadArtifactRequest(name=name, version=artifact))
        case Action.ACTIVATE:
            artifact_id = _loaded_id(call, name, artifact)
            version = "" if artifact_id else artifact
            call("ActivateArtifact", pb.ActivateArtifactRequest(name=name, version=version, artifact_id=artifact_id))
        case Action.ROLLBACK:
            call("RollbackArtifact", pb.RollbackArtifactRequest(name=name))
        case Action.UNLOAD:
            if not (artifact_id := _loaded_id(call, name, artifact)):
                raise ArtifactNotFound("unload needs the version or the id of an artifact that is loaded; see list")
            call("UnloadArtifact", pb.UnloadArtifactRequest(artifact_id=artifact_id))


def _loaded_id(call: Call, name: str, artifact: str) -> str:
    """The id of the one loaded artifact that is meant, by a version of `name` or the first digits of an id."""
    loaded = {
        each.artifact_id
        for each in call("ListArtifacts", pb.ListArtifactsRequest()).artifacts
        if each.state != pb.ARTIFACT_STATE_AVAILABLE
        and artifact
        and (
            (each.name, each.version) == (name, artifact)
            or (len(artifact) >= SHORTEST_ID and each.artifact_id.startswith(artifact))
        )
    }
    return loaded.pop() if len(loaded) == 1 else ""


def _table(artifacts: Any) -> Table:
    table = Table("name", "version", "artifact", "", "catalog", "made", "MiB", "images", box=None)
    for each in artifacts:
        table.add_row(
            each.name,
            each.version,
            each.artifact_id[:12],
            STATES.get(each.state, ""),
            str(each.catalog_version or ""),
            each.created_at,
            f"{each.size_bytes / 2**20:.1f}",
            str(each.images or ""),
        )
    return table
