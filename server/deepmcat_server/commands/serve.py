"""`deepmcat serve`: serve an artifact over gRPC."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepmcat_core import logs

if TYPE_CHECKING:
    from deepmcat_server.config import Settings


def command(
    artifact: Annotated[Path, typer.Argument(help="The artifact: a directory or a packed file; or a folder of them.")],
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for gRPC; port 0 is any free one.")] = None,
    admin: Annotated[str | None, typer.Option(help="HOST:PORT for /livez, /readyz and /metrics.")] = None,
    artifacts: Annotated[
        list[str] | None, typer.Option("--artifact", metavar="NAME=PATH", help="Another one, by name; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16: the last two where they passed their gate.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="triton://HOST:PORT/MODEL", help="Run the encoder in a Triton there.")
    ] = None,
    fronts: Annotated[
        int | None, typer.Option(help="Processes that share the port; more than 1 on many cores.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plaintext beyond this machine.")] = False,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, any setting; may be repeated.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write the actual addresses here once serving.")] = None,
    as_front: Annotated[bool, typer.Option("--as-front", hidden=True, help="How fronts.py starts one.")] = False,
) -> int:
    """Serve ARTIFACT over gRPC until SIGTERM. Every setting is also a DEEPMCAT_* variable."""
    if as_front:
        return _serve_as_front(artifact, ready_file)
    from deepmcat_server.config import load as load_settings
    from deepmcat_server.config import parse_artifacts

    named = parse_artifacts(artifacts) if artifacts else None
    flags = {
        "listen": listen,
        "admin": admin,
        "device": device,
        "precision": precision,
        "encoder": encoder,
        "fronts": fronts,
        "insecure": insecure or None,
        "artifacts": named,
    }
    settings = load_settings(flags=flags, sets=set_ or [], file=config)
    logs.configure(settings.log_level)
    if settings.fronts > 1:
        from deepmcat_server.fronts import supervise

        return asyncio.run(supervise(settings, artifact, ready_file))
    _serve(settings, artifact, ready_file)
    return 0


def _serve_as_front(artifact: Path, ready_file: Path | None) -> int:
    """As the supervisor says on standard input."""
    from deepmcat_server.lifeline import end_with_supervisor
    from deepmcat_server.shares import heard

    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):  # it is gone
        return 1
    number, settings = heard(line)
    logs.configure(settings.log_level, front=number)
    end_with_supervisor()
    _serve(settings, artifact, ready_file)
    return 0


def _serve(settings: Settings, artifact: Path, ready_file: Path | None) -> None:
    """In this process."""
    from deepmcat_server.app import serve
    from deepmcat_server.opening import engine_opener, open_newest

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, open_newest(artifact, engine_opener(settings), settings.limits), ready_file))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is installed, which is not on every platform; else the standard one."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
