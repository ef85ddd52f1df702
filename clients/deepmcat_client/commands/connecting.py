"""The options with which a command reaches a server, the same for all commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deepmcat_client.errors import InvalidRequest
from deepmcat_client.security import Tls, TokenFile

_PANEL = "Reaching a server"
_PREFIX = "DEEPMCAT_CLIENT_"

ServerOption = Annotated[
    str,
    typer.Option(
        "--server", metavar="HOST:PORT", help="The server to ask; several with commas, or dns:///HOST:PORT for all."
    ),
]
TlsOption = Annotated[
    bool,
    typer.Option(
        "--tls",
        envvar=f"{_PREFIX}TLS",
        help="Encrypt; trust whom the system trusts.",
        rich_help_panel=_PANEL,
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        envvar=f"{_PREFIX}TLS_CA",
        help="Encrypt; trust these certificates (PEM).",
        rich_help_panel=_PANEL,
    ),
]
CertOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        envvar=f"{_PREFIX}TLS_CERT",
        help="Your own certificate (PEM), for mutual TLS.",
        rich_help_panel=_PANEL,
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-key", metavar="FILE", envvar=f"{_PREFIX}TLS_KEY", help="Its key (PEM).", rich_help_panel=_PANEL
    ),
]
ServerNameOption = Annotated[
    str,
    typer.Option(
        "--tls-server-name",
        metavar="NAME",
        envvar=f"{_PREFIX}TLS_SERVER_NAME",
        help="The name in the server's certificate, where it is not HOST.",
        rich_help_panel=_PANEL,
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar=f"{_PREFIX}TOKEN_FILE",
        help="A file with your bearer token; read again for each call.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How to reach a server, but for where it is."""

    tls: Tls | None
    token: TokenFile | None


def reach(
    *, tls: bool, ca: Path | None, cert: Path | None, key: Path | None, server_name: str, token_file: Path | None
) -> Reach:
    """What the options say together. Raises InvalidRequest."""
    if server_name and not (tls or ca or cert):
        raise InvalidRequest("--tls-server-name goes with --tls or --tls-ca")
    wanted = tls or ca is not None or cert is not None or key is not None
    return Reach(
        tls=Tls(ca=ca, cert=cert, key=key, server_name=server_name) if wanted else None,
        token=None if token_file is None else TokenFile(token_file),
    )
