"""`deepmcat serve` as a process: start, answers through real worker processes, signals, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client.cli import main
from deepmcat_core import artifact as artifacts

# `deepmcat serve`, which then says whether torch was imported.
PROGRAM = """
import sys
from deepmcat_client.cli import main
code = main(["serve", *sys.argv[1:]])
sys.exit(77 if "torch" in sys.modules else code)
"""


def onnx_projection(matrix: np.ndarray) -> bytes:
    """The tests' random projection as an ONNX engine: (B, 1, S, S) uint8 → (B, D) unit vectors."""
    pixels, dim = matrix.shape
    size = round(pixels**0.5)
    constants = {
        "shape": np.array([-1, pixels], np.int64),
        "scale": np.array(1 / 255, np.float32),
        "half": np.array(0.5, np.float32),
        "matrix": matrix,
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "matrix"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "projection",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 1, size, size])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(name="onnx_artifact")
def onnx_artifact_fixture(tmp_path: Path, draft) -> Path:
    """The tiny artifact with an ONNX engine, as a CPU server runs it."""
    folder = tmp_path / "artifact"
    artifacts.write(folder, dataclasses.replace(draft, onnx=onnx_projection(draft.encoder["matrix"])))
    return folder


@dataclasses.dataclass
class Server:
    """A process that serves."""

    process: subprocess.Popen[bytes]
    listen: str
    log: Path

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(name="start")
def start_fixture(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start(artifact, "--set", "drain_s=0")`: a process that is SERVING on free ports."""
    processes = []

    def start(artifact: Path, *arguments: str) -> Server:
        ready, log = tmp_path / "ready.json", tmp_path / "log"
        ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file", str(ready)]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(artifact), *ports, "--set", "decode_workers=1", *arguments],
                stderr=stderr,
            )
        processes.append(process)
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        return Server(process, json.loads(ready.read_text())["listen"], log)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_serves_and_drains_as_a_process(start, onnx_artifact, pngs):
    """A CPU server with an ONNX engine answers through its workers without torch, and SIGTERM ends it with 0."""
    server = start(onnx_artifact, "--set", "drain_s=0.1")
    with grpc.insecure_channel(server.listen) as channel:
        stub = pb_grpc.CategorizationServiceStub(channel)
        messages = [
            pb.CategorizeStreamRequest(item=pb.CategorizeRequest(image=pb.Image(encoded=content)))
            for content in (*pngs, b"no image" * 20)
        ]
        answers = list(stub.CategorizeStream(iter(messages), timeout=60))
        described = stub.GetArtifact(pb.GetArtifactRequest(), timeout=10)
    code = server.stop()

    assert [a.categorization.assignment.cluster_id for a in answers[:4]] == [0, 1, 2, 3]
    assert answers[4].WhichOneof("result") == "error"
    assert described.engine.startswith("onnx")
    assert code == 0, server.log.read_text()
    events = [json.loads(line)["event"] for line in server.log.read_text().splitlines()]
    assert [e for e in events if e != "call"] == [
        "listening", "admin listening", "serving", "signal", "draining", "stopped",
    ]  # fmt: skip


def test_second_signal_ends_at_once(start, onnx_artifact):
    """A second signal does not wait for the drain."""
    server = start(onnx_artifact, "--set", "drain_s=600")
    server.process.send_signal(signal.SIGINT)
    while b"draining" not in server.log.read_bytes():
        time.sleep(0.02)
    assert server.stop() == 130


def test_busy_port_is_a_sentence(onnx_artifact):
    """A port that is taken ends the start with one sentence and exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-c", PROGRAM, str(onnx_artifact), "--listen", address, "--admin", "127.0.0.1:0"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)

    assert ended.returncode == 2, ended.stderr
    *events, sentence = ended.stderr.splitlines()
    assert sentence.startswith(f"deepmcat: cannot listen on {address}")
    assert all(json.loads(event) for event in events)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "max_qeue=1"], "Did you mean 'max_queue'"),
        (["--listen", "0.0.0.0:50051"], "--insecure"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_wrong_settings_are_sentences(arguments, sentence, tmp_path: Path, capsys):
    """A setting that is wrong ends the start with exit code 2 before anything is loaded."""
    assert main(["serve", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_missing_artifact_is_a_sentence(tmp_path: Path):
    """A path without an artifact ends the start with exit code 2 and names the path on the caller's terminal."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "nowhere"), "--admin", "127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "there is no artifact at" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
