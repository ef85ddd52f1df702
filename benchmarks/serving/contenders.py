"""The servers that are compared: how each is started, and how it is told what to run.

    ours          `deepmcat serve`, or benchmarks.serving.ours where a fixed time takes the encoder's place
    Triton        the real tritonserver of nvidia-pytriton: its Python backend runs the encoder
    MLServer      a runtime of one's own with adaptive batching
    Ray Serve     its gRPC proxy, one replica with @serve.batch
    plain         what a good user would write: plain.py

Every contender answers the same call, `ModelInfer` with planes (n, S, S), with embeddings; ours assigns categories too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
from benchmarks.serving.load import MODEL
from benchmarks.serving.peers import work
from benchmarks.serving.processes import Cores, Process, free_port
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from deepmcat_core.artifact import ONNX

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS = {
    "Triton": (".venv-triton", "nvidia-pytriton"),
    "MLServer": (".venv-mlserver", "mlserver"),
    "Ray Serve": (".venv-ray", "ray"),
}
TRITON_RELEASE = {"0.7.0": "24.10"}  # which tritonserver nvidia-pytriton brings
DRAIN_S = 5.0  # our default, and what peers are measured over
MAX_BATCH = 32  # our default


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a server is to run. folder: for its files. spec: of peers/work.py. batch: the limit of a batch."""

    folder: Path
    artifact: Path
    spec: Mapping[str, Any]
    dim: int
    batch: int
    cores: Cores

    @property
    def fixed(self) -> bool:
        """Whether a fixed time stands in for the encoder."""
        return "seconds" in self.spec


def fixed(folder: Path, artifact: Path, dim: int, cores: Cores, *, seconds: float, batch: int) -> Task:
    """The same time for each batch, in place of the encoder."""
    spec = {"seconds": seconds, "dim": dim}
    return Task(folder=folder, artifact=artifact, spec=spec, dim=dim, batch=batch, cores=cores)


def encoding(folder: Path, artifact: Path, dim: int, cores: Cores) -> Task:
    """The artifact's ONNX file, on as many threads as the servers have cores."""
    spec = {"model": str(artifact / ONNX), "threads": len(cores.servers)}
    return Task(folder=folder, artifact=artifact, spec=spec, dim=dim, batch=MAX_BATCH, cores=cores)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers. executed: the log of the batches it ran. started_s: from its start until it was ready."""

    name: str
    process: Process
    address: str
    way: str
    executed: Path
    started_s: float
    admin: str = ""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server by name. way: how it is called (load.py). start: of a task, in a folder of its own."""

    name: str
    start: Callable[[Task], Running]
    way: str = "infer"
    peer: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty where it can."""
        if not self.peer or version(self.peer):
            return ""
        return f"{self.peer}: no {ENVIRONMENTS[self.peer][0]}, which `make bench-serving` makes where it can"

    @contextmanager
    def running(self, task: Task) -> Iterator[Running]:
        """In a new folder; killed in the end, where it is still there."""
        folder = task.folder / f"{self.name}-{time.monotonic_ns()}".replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True)
        spec = dict(task.spec) | {"log": str(folder / "executed")}
        server = self.start(replace(task, folder=folder, spec=spec))
        with server.process:
            yield replace(server, name=self.name, way=self.way)


def version(peer: str) -> str | None:
    """Of a peer in its environment; None where it is not installed."""
    environment, package = ENVIRONMENTS[peer]
    if not (ROOT / environment / ".setup").exists():
        return None
    sites = [str(path) for path in (ROOT / environment).glob("lib/python3*/site-packages")]
    found = next(iter(metadata.distributions(name=package, path=sites)), None)
    return found.version if found else None


def versions() -> dict[str, str]:
    """Of the peers that are here."""
    found = {peer: version(peer) for peer in ENVIRONMENTS}
    named = {peer: v for peer, v in found.items() if v}
    if triton := named.get("Triton"):
        named["Triton"] = f"{TRITON_RELEASE.get(triton, '?')} (nvidia-pytriton {triton})"
    return named


def ours(name: str = "ours", *, way: str = "infer", settings: Sequence[str] = (), port: int = 0) -> Contender:
    """Our server as it comes, with these settings."""

    def start(task: Task) -> Running:
        ready = task.folder / "ready.json"
        listen = f"127.0.0.1:{port}"
        sets = [f"max_batch={task.batch}", *settings]
        if task.fixed:
            sets += [f"listen={listen}", "admin=127.0.0.1:0"]
            command = [sys.executable, "-m", "benchmarks.serving.ours", task.artifact, ready, *sets]
        else:
            command = [sys.executable, "-m", "deepmcat_client", "serve", task.artifact, "--device", "cpu"]
            command += ["--listen", listen, "--admin", "127.0.0.1:0", "--ready-file", ready]
            command += [part for each in sets for part in ("--set", each)]
        process = _process(task, command)
        started_s = process.wait_until(ready.exists)
        addresses = json.loads(ready.read_text())
        return _running(task, process, addresses["listen"], started_s, admin=addresses["admin"])

    return Contender(name=name, start=start, way=way)


def plain(name: str, *arguments: str, engine: str = "onnx") -> Contender:
    """What a good user would write (plain.py)."""

    def start(task: Task) -> Running:
        address, ready = f"127.0.0.1:{free_port()}", task.folder / "ready"
        command = [sys.executable, "-m", "benchmarks.serving.plain", address, ready, "--batch", task.batch, *arguments]
        if not task.fixed:
            command += ["--artifact", task.artifact, "--engine", engine]
        process = _process(task, command)
        return _running(task, process, address, process.wait_until(ready.exists))

    return Contender(name=name, start=start)


def triton(name: str = "Triton", *, queue_policy: str = "", options: Sequence[str] = ()) -> Contender:
    """The real one. queue_policy: of its dynamic batching. options: more of its command line."""

    def start(task: Task) -> Running:
        site = next((ROOT / ".venv-triton").glob("lib/python3*/site-packages")).resolve()
        server = site / "pytriton" / "tritonserver"
        backends = task.folder / "backends"
        shutil.copytree(server / "backends" / "python", backends / "python")
        stub = f"{site.parent.name.removeprefix('python')}/triton_python_backend_stub"
        shutil.copy(server / "python_backend_stubs" / stub, backends / "python")
        write_model(task, task.folder / "models", queue_policy)
        port = free_port()
        command = [server / "bin" / "tritonserver", f"--model-repository={task.folder / 'models'}"]
        command += [f"--backend-directory={backends}", "--allow-http=false", "--allow-metrics=false"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={port}", *options]
        environment = {
            "PATH": f"{site.parents[2] / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(site),
        }
        process = _process(task, command, environment)
        return _answering(task, process, port)

    return Contender(name=name, start=start, peer="Triton")


def write_model(task: Task, repository: Path, queue_policy: str = "") -> None:
    """The model's folder in a repository of Triton's."""
    folder = repository / MODEL / "1"
    folder.mkdir(parents=True)
    shutil.copyfile(PEERS / "triton_model.py", folder / "model.py")
    shutil.copyfile(PEERS / "work.py", folder / "work.py")
    (folder.parent / "config.pbtxt").write_text(
        f'name: "{MODEL}"\nbackend: "python"\nmax_batch_size: {task.batch}\n'
        'input [ { name: "plane" data_type: TYPE_UINT8 dims: [ 128, 128 ] } ]\n'
        f'output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {task.dim} ] }} ]\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        f"dynamic_batching {{ {queue_policy} }}\n"
    )


def mlserver() -> Contender:
    """With its defaults: inference in a worker process beside the one that talks."""

    def start(task: Task) -> Running:
        port = free_port()
        settings = {"host": "127.0.0.1", "grpc_port": port, "http_port": free_port(), "metrics_port": free_port()}
        settings["metrics_dir"] = str(task.folder / "metrics")
        model = {"name": MODEL, "implementation": "mlserver_runtime.Runtime"}
        model |= {"max_batch_size": task.batch, "max_batch_time": 0.005}
        (task.folder / "settings.json").write_text(json.dumps(settings))
        (task.folder / "model-settings.json").write_text(json.dumps(model))
        environment = {"PYTHONPATH": str(PEERS), "MLSERVER_PARALLEL_WORKERS": "1"}
        process = _process(task, [ROOT / ".venv-mlserver" / "bin" / "mlserver", "start", task.folder], environment)
        return _answering(task, process, port)

    return Contender(name="MLServer", start=start, peer="MLServer")


def ray_serve() -> Contender:
    """Its proxy, one replica."""

    def start(task: Task) -> Running:
        port = free_port()
        command = [ROOT / ".venv-ray" / "bin" / "python", PEERS / "ray_app.py", port, task.batch]
        # Paths of its sockets may have 107 bytes, so its folder is the shorter one. Tokens go into the home folder.
        environment = {"PYTHONPATH": str(PEERS), "RAY_TMPDIR": str(task.folder.parent), "RAY_AUTH_MODE": "disabled"}
        environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"  # on a busy machine its 5 s are too few
        process = _process(task, command, environment)
        return _answering(task, process, port, ask_inference=True)

    return Contender(name="Ray Serve", start=start, peer="Ray Serve")


def _process(task: Task, command: Sequence[Any], environment: Mapping[str, str] | None = None) -> Process:
    variables = {work.VARIABLE: json.dumps(task.spec), "PYTHONUNBUFFERED": "1"} | dict(environment or {})
    return Process(command, log=task.folder / "log", on=task.cores.servers, environment=variables)


def _running(task: Task, process: Process, address: str, started_s: float, admin: str = "") -> Running:
    return Running(
        name="",
        process=process,
        address=address,
        way="",
        executed=Path(task.spec["log"]),
        started_s=started_s,
        admin=admin,
    )


def _answering(task: Task, process: Process, port: int, *, ask_inference: bool = False) -> Running:
    """When the protocol's own health says so, or, where a server has none, when it answers a call."""
    address = f"127.0.0.1:{port}"
    started_s = process.wait_until(lambda: _answers(address) if ask_inference else is_ready(address))
    return _running(task, process, address, started_s)


def is_ready(address: str) -> bool:
    """What ModelReady says; false where nobody does."""
    with grpc.insecure_channel(address) as channel:
        try:
            request = oip.ModelReadyRequest(name=MODEL)
            return bool(oip_grpc.GRPCInferenceServiceStub(channel).ModelReady(request, timeout=1).ready)
        except grpc.RpcError:
            return False


def _answers(address: str) -> bool:
    from benchmarks.serving.load import WAYS, planes, request

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(WAYS["infer"])(request("infer", planes(1, 128, 0)), timeout=5)
        except grpc.RpcError:
            return False
    return True
