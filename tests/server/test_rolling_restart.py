"""Two real servers restarted one after the other under our own client: no image is lost, none is answered twice."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deepmcat_client import Categorization, Client

AT_LEAST = 300


class Replica:
    """A server process that can be replaced at its address."""

    def __init__(self, program: str, artifact: Path, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._command = [sys.executable, "-c", program, str(artifact), "--listen", self.address]
        self._folder = folder
        self._starts = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it serves."""
        ready = self._folder / f"ready-{self.address}-{next(self._starts)}"
        settings = ["--set", "decode_workers=1", "--set", "drain_s=0.5", "--set", "grace_s=60"]
        log = self._folder / f"{ready.name}.log"
        with log.open("wb") as stderr:
            command = [*self._command, "--admin", "127.0.0.1:0", "--ready-file", str(ready), *settings]
            self._process = subprocess.Popen(command, stderr=stderr)
        while not ready.exists():
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def kill(self) -> None:
        """Make sure that it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Rollout(threading.Thread):
    """Replaces each replica in turn; exit codes in `codes`. over: it is finished, or has failed."""

    def __init__(self, replicas: list[Replica]) -> None:
        super().__init__()
        self.codes: list[int] = []
        self.over = threading.Event()
        self._replicas = replicas

    def run(self) -> None:
        try:
            for replica in self._replicas:
                self.codes.append(replica.stop())
                replica.start()
                time.sleep(0.5)
        finally:
            self.over.set()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["{0},{1}", "ipv4:{0},{1}"], ids=["two targets", "round robin"])
def test_a_rolling_restart_loses_no_image(
    program: str, onnx_artifact: Path, pngs: list[bytes], tmp_path: Path, form: str
) -> None:
    """Every image of a long stream is answered once, rightly and in order while both servers are replaced."""
    replicas = [Replica(program, onnx_artifact, tmp_path) for _ in range(2)]
    rollout = Rollout(replicas)
    answers: list[tuple[int, object]] = []

    def images() -> Iterator[tuple[int, bytes]]:
        for number in itertools.count():
            if rollout.over.is_set() and number >= AT_LEAST:
                return
            time.sleep(0.005)
            yield number, pngs[number % len(pngs)]

    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        target = form.format(*(replica.address for replica in replicas))
        client = stack.enter_context(Client(target, images_per_call=50, timeout_s=120))
        for pair in client.categorize_stream(images()):
            answers.append(pair)
            if len(answers) == 20:
                rollout.start()
        rollout.join()

    assert rollout.codes == [0, 0]
    assert len(answers) >= AT_LEAST
    assert [number for number, _ in answers] == list(range(len(answers)))
    assert [pair for pair in answers if not isinstance(pair[1], Categorization)] == []
    clusters = [answer.assignment.cluster_id for _, answer in answers if isinstance(answer, Categorization)]
    assert clusters == [number % len(pngs) for number in range(len(answers))]
