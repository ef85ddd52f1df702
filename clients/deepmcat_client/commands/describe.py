"""`deepmcat describe`: what is this artifact, and what does its server allow?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepmcat_client.client import Client
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
from deepmcat_client.commands.tables import category_table, output
from deepmcat_client.errors import InvalidRequest
from deepmcat_client.local import read_artifact
from deepmcat_client.results import ArtifactInfo, Catalog, Limits, PrecisionGate


def command(
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="An artifact on disk.", show_default=False)
    ] = None,
    server: ServerOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_server_name: ServerNameOption = "",
    token_file: TokenOption = None,
) -> None:
    """Show an artifact: what made it, how it takes images, what its verdicts are worth, its limits and categories."""
    if bool(server) == (artifact is not None):
        raise InvalidRequest("give either an ARTIFACT or --server HOST:PORT")
    secured = reach(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name, token_file=token_file)
    info, catalog = read_artifact(artifact) if artifact is not None else _ask(server, secured)
    if as_json:
        print(json.dumps({**asdict(info), "catalog": asdict(catalog)}, ensure_ascii=False))  # noqa: T201 - the answer
    else:
        show(output(), info, catalog)


def show(console: Console, info: ArtifactInfo, catalog: Catalog) -> None:
    """Print a description."""
    console.print(_grid(_artifact_facts(info)))
    if info.serving is not None:
        console.print(Text("\nserver", style="bold"))
        console.print(_grid(_serving_facts(info)))
    retired = sum(category.status == "retired" for category in catalog.categories)
    title = f"\ncategories (catalog version {catalog.version}" + (f", {retired} retired" if retired else "") + ")"
    console.print(Text(title, style="bold"))
    console.print(category_table(catalog))


def _ask(server: str, secured: Reach) -> tuple[ArtifactInfo, Catalog]:
    with Client(server, tls=secured.tls, token=secured.token) as client:
        return client.get_artifact(), client.list_categories()


def _artifact_facts(info: ArtifactInfo) -> dict[str, str]:
    a, p = info.artifact, info.artifact.preprocessing
    return {
        "artifact": a.artifact_id,
        "made": f"{a.created_at}, recipe {a.recipe}",
        "encoder": f"{a.encoder}, {a.dim} dimensions",
        "clusters": f"{a.clusters} fine clusters in {a.categories} categories",
        "preprocessing": f"version {p.version}: {p.size} × {p.size}, intensity by {p.intensity}, "
        f"up to {p.frames} frames of a multi-frame image",
        "calibration": a.calibration.note,
        "decoders": ", ".join(a.decoders),
        **({"precision": "\n".join(map(_gate, a.precision_gates))} if a.precision_gates else {}),
    }


def _gate(gate: PrecisionGate) -> str:
    verdict = "passed" if gate.passed else "did not pass"
    return (
        f"{gate.precision} on {gate.device} {verdict}: cosine {gate.min_cosine:.5f} "
        f"or more, the same category for {gate.category_agreement:.2%} of {gate.images} calibration images"
    )


def _serving_facts(info: ArtifactInfo) -> dict[str, str]:
    serving = info.serving
    assert serving is not None
    return {
        "version": f"{serving.version}, engine {serving.engine} on {serving.device}"
        + (f" in {serving.precision}" if serving.precision else ""),
        "decoders": ", ".join(serving.decoders),
        **_limit_facts(serving.limits),
    }


def _limit_facts(limits: Limits) -> dict[str, str]:
    return {
        "an image": f"up to {_size(limits.max_image_bytes)}, {limits.max_side} rows or columns, "
        f"{limits.max_frames} frames used, {limits.max_timeout_ms / 1000:g} s",
        "a message": f"up to {_size(limits.max_message_bytes)}; larger images in chunks of "
        f"{_size(limits.max_chunk_bytes)}",
        "at once": f"{limits.max_stream_in_flight} images of a stream, {limits.max_queue} in all; "
        f"{limits.max_streams} streams and {limits.max_calls} other calls",
        "decoding": f"{limits.decode_workers} processes; of an image {limits.decode_timeout_ms / 1000:g} s, "
        f"{limits.decode_cpu_ms / 1000:g} s of CPU, {_size(limits.decode_memory_bytes)}",
        "encoding": f"{limits.max_batch} frames a batch; a call waits at most {limits.queue_budget_ms / 1000:g} s",
    }


def _size(size_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:g} {unit}"
    return f"{size_bytes} bytes"


def _grid(facts: dict[str, str]) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid
