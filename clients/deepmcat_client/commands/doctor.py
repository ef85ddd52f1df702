"""`deepmcat doctor`: what this install can do, and what it lacks, on one screen."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from deepmcat_client.checks import Check, Status
from deepmcat_client.commands.connecting import (
    CaOption,
    CertOption,
    KeyOption,
    ServerNameOption,
    ServerOption,
    TlsOption,
    TokenOption,
    reach,
)
from deepmcat_client.commands.tables import output
from deepmcat_client.reachability import look

FAILED = 2

EXTRAS = ("dicom", "core", "server", "trainer", "pretrained", "cpu", "gpu", "triton", "demo")
DECODERS = ("pydicom", "pillow", "imagecodecs", "pyjpegls", "pylibjpeg-openjpeg")
GRPC = ("grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-tools")
PROTOBUF_LOWEST, PROTOBUF_BELOW = (6, 33, 5), (8,)

Distributions = Mapping[str, str]
"""Installed distributions: normalised name → version."""


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for a bug report.")] = False,
    server: ServerOption = "",
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_server_name: ServerNameOption = "",
    token_file: TokenOption = None,
) -> None:
    """Show versions, devices, engines and decoders, and which extras are complete. Exit code 2 on a broken install.

    With --server: whether this machine can reach that server, and if not, why.
    """
    if server:
        secured = reach(
            tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name, token_file=token_file
        )
        checks = list(look(server, secured.tls, secured.token))
    else:
        checks = examine(installed())
    if as_json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}))  # noqa: T201 - the answer itself
    else:
        output().print(_table(checks))
    if any(check.status is Status.FAIL for check in checks):
        raise typer.Exit(FAILED)


def installed() -> Distributions:
    """What is installed, from its metadata; nothing is imported."""
    found = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())
    return {_normalised(name): version for name, version in found if name}


def examine(distributions: Distributions, requires: Iterable[str] | None = None) -> list[Check]:
    """All checks. requires: deepmcat's own requirements, from its metadata where None."""
    if requires is None:
        requires = importlib.metadata.requires("deepmcat") or ()
    return [
        _python(distributions),
        _torch(distributions),
        _faiss(distributions),
        _engines(distributions),
        _decoders(distributions),
        _gpl_decoder(distributions),
        _protobuf(distributions),
        _grpc(distributions),
        *_extras(distributions, [*requires]),
    ]


def missing(extra: str, distributions: Distributions, requires: Iterable[str] | None = None) -> list[str]:
    """The distributions that an extra brings and that are not installed."""
    if requires is None:
        requires = importlib.metadata.requires("deepmcat") or ()
    return sorted(_needs(extra, [*requires]) - distributions.keys())


def _python(distributions: Distributions) -> Check:
    system = f"{platform.system()} {platform.machine()}"
    detail = f"Python {platform.python_version()} on {system}, deepmcat {distributions.get('deepmcat', '?')}"
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check(name="python", status=Status.OK if fits else Status.WARN, detail=detail)


def _torch(distributions: Distributions) -> Check:
    if "torch" not in distributions:
        return Check(name="torch", status=Status.NOTE, detail="not installed; only training and torch engines need it")
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Check(name="torch", status=Status.FAIL, detail=f"installed but cannot be imported: {error}")
    detail = f"torch {torch.__version__}, built for " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU")
    if not torch.version.cuda:
        return Check(name="torch", status=Status.OK, detail=detail)
    if not torch.cuda.is_available():
        return Check(name="torch", status=Status.WARN, detail=f"{detail}, but no CUDA device can be used")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check(name="torch", status=Status.OK, detail=f"{detail}: {', '.join(devices)}")


def _faiss(distributions: Distributions) -> Check:
    """All faiss distributions install the same folder; the last one wins file by file, and neither works."""
    found = sorted(name for name in distributions if name == "faiss" or name.startswith("faiss-"))
    detail = ", ".join(f"{name} {distributions[name]}" for name in found)
    if len(found) > 1:
        way_out = f"pip uninstall {' '.join(found)}, then install [cpu] or [gpu]"
        return Check(name="faiss", status=Status.FAIL, detail=f"{detail}: they overwrite each other; {way_out}")
    if not found:
        return Check(name="faiss", status=Status.NOTE, detail="not installed: pip install 'deepmcat[cpu]', or [gpu]")
    return Check(name="faiss", status=Status.OK, detail=detail)


def _engines(distributions: Distributions) -> Check:
    found = [f"{name} {distributions[name]}" for name in ("onnxruntime", "torch") if name in distributions]
    if not found:
        return Check(
            name="engines", status=Status.NOTE, detail="none; a client needs none. pip install 'deepmcat[cpu]'"
        )
    return Check(name="engines", status=Status.OK, detail=", ".join(found))


def _decoders(distributions: Distributions) -> Check:
    found = [f"{name} {distributions[name]}" for name in DECODERS if name in distributions]
    missing = [name for name in DECODERS if name not in distributions]
    if not found:
        return Check(
            name="decoders", status=Status.NOTE, detail="none; a client needs none. pip install 'deepmcat[core]'"
        )
    if missing:
        detail = f"{', '.join(found)}; missing {', '.join(missing)}: pip install 'deepmcat[core]'"
        return Check(name="decoders", status=Status.WARN, detail=detail)
    return Check(name="decoders", status=Status.OK, detail=", ".join(found))


def _gpl_decoder(distributions: Distributions) -> Check:
    version = distributions.get("pylibjpeg-libjpeg")
    if version is None:
        return Check(name="licences", status=Status.OK, detail="no decoder under the GPL is installed")
    detail = (
        f"pylibjpeg-libjpeg {version} is under the GPL-3.0; DeepMCAT does not use it: pip uninstall pylibjpeg-libjpeg"
    )
    return Check(name="licences", status=Status.WARN, detail=detail)


def _protobuf(distributions: Distributions) -> Check:
    version = distributions.get("protobuf", "")
    fits = PROTOBUF_LOWEST <= _numbers(version) < PROTOBUF_BELOW
    detail = f"protobuf {version or 'is missing'}" + ("" if fits else "; 6.33.5 or later below 8 is needed")
    return Check(name="protobuf", status=Status.OK if fits else Status.FAIL, detail=detail)


def _grpc(distributions: Distributions) -> Check:
    """grpcio-health-checking, -reflection and -tools from 1.83 on need protobuf 7."""
    found = [name for name in GRPC if name in distributions]
    detail = ", ".join(f"{name} {distributions[name]}" for name in found)
    too_new = [name for name in found if name != "grpcio" and _numbers(distributions[name]) >= (1, 83)]
    if too_new and _numbers(distributions.get("protobuf", "")) < (7,):
        return Check(
            name="grpc", status=Status.WARN, detail=f"{detail}: {', '.join(too_new)} below 1.83 go with protobuf 6"
        )
    return Check(name="grpc", status=Status.OK if "grpcio" in found else Status.FAIL, detail=detail or "no grpcio")


def _extras(distributions: Distributions, requires: list[str]) -> Iterable[Check]:
    needs = {extra: _needs(extra, requires) for extra in EXTRAS}
    for extra in EXTRAS:
        missing = sorted(name for name in needs[extra] if name not in distributions)
        if extra in ("cpu", "gpu") and missing:
            other = needs["gpu" if extra == "cpu" else "cpu"]
            if all(name in distributions for name in other):
                continue  # one of the two is enough, and both at once are too many
        if missing:
            detail = f"lacks {', '.join(missing)}: pip install 'deepmcat[{extra}]'"
            yield Check(name=f"[{extra}]", status=Status.NOTE, detail=detail)
        else:
            yield Check(name=f"[{extra}]", status=Status.OK, detail="complete")


def _needs(extra: str, requires: list[str]) -> set[str]:
    """The distributions that an extra brings, those of the extras it refers to included; platform markers ignored."""
    needed: set[str] = set()
    for requirement in requires:
        specifier, _, marker = requirement.partition(";")
        if not re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker):
            continue
        name, inner = _split(specifier)
        if _normalised(name) != "deepmcat":
            needed.add(_normalised(name))
        for other in inner:
            needed |= _needs(other, requires) if _normalised(name) == "deepmcat" else set()
    return needed


def _split(specifier: str) -> tuple[str, list[str]]:
    """`deepmcat[core,cpu]>=1` as its name and extras."""
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", specifier)
    if match is None:
        return specifier, []
    return match[1], [part.strip() for part in (match[2] or "").split(",") if part.strip()]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


_STYLES = {Status.OK: "green", Status.NOTE: "dim", Status.WARN: "yellow", Status.FAIL: "bold red"}


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row(Text(check.status.value, style=_STYLES[check.status]), Text(check.name), Text(check.detail))
    return table
