"""`deepmcat serve` as a process: start, answers through real worker processes, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client.cli import main


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


def test_busy_port_is_a_sentence(onnx_artifact, program):
    """A port that is taken ends the start with one sentence and exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-c", program, str(onnx_artifact), "--listen", address, "--admin", "127.0.0.1:0"]
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


def test_missing_artifact_is_a_sentence(program, tmp_path: Path):
    """A path without an artifact ends the start with exit code 2 and names the path on the caller's terminal."""
    command = [sys.executable, "-c", program, str(tmp_path / "nowhere"), "--admin", "127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "there is no artifact at" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
