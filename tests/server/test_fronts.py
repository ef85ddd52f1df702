"""Several servers behind one port: both are reached, metrics of all, and deaths, stops and mistakes as with one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_core.errors import ConfigError
from deepmcat_server.addresses import Address
from deepmcat_server.admin import Admin
from deepmcat_server.config import Settings, load
from deepmcat_server.front_metrics import MergedMetrics
from deepmcat_server.fronts import Fronts
from deepmcat_server.shares import SHARED, heard, share_of, told

ANY = Address("127.0.0.1", 0)
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def get(address: object, path: str, accept: str = "*/*") -> tuple[int, str]:
    """An HTTP GET of an admin port."""
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str, name: str) -> dict[str, float]:
    """The samples of a name, summed by the label `front`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                front = sample.labels.get("front", "")
                found[front] = found.get(front, 0) + sample.value
    return found


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so; the test's own time limit ends it otherwise."""
    while not condition():
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """The same, with theirs."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for whoever adopted it to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def connection(listen: str) -> Iterator[pb_grpc.CategorizationServiceStub]:
    """A stub with a connection of its own."""
    with grpc.insecure_channel(listen, options=OWN_CONNECTION) as channel:
        yield pb_grpc.CategorizationServiceStub(channel)


def answers(server: object, path: str, name: str) -> dict[str, float]:
    return samples(get(server.admin, path)[1], name)


def test_metrics_of_fronts_are_those_of_one_server():
    """Each family is there once, with its type all samples and their front; who does not answer is left out."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    for number, registry in enumerate(registries):
        Counter("images", "Images.", ["result"], registry=registry).labels("ok").inc(number + 1)
        Gauge("inside", "Inside now.", registry=registry).set(7)
        Histogram("took_seconds", "How long.", buckets=(-1, 2), registry=registry).observe(1.5)
    outer = CollectorRegistry()
    with contextlib.ExitStack() as stack:
        fronts = [stack.enter_context(Admin(ANY, registry)).address for registry in registries]
        silent = stack.enter_context(socket.create_server(ANY))
        fronts.append(Address(*silent.getsockname()))
        outer.register(MergedMetrics(lambda: dict(enumerate(fronts)), timeout_s=0.3))
        admin = stack.enter_context(Admin(ANY, outer))
        text = get(admin.address, "/metrics")[1]
        open_metrics = get(admin.address, "/metrics", "application/openmetrics-text; version=1.0.0")[1]

    lines = text.splitlines()
    assert [line for line in lines if line.startswith(("# TYPE images", "# HELP images_total"))] == [
        "# HELP images_total Images.",
        "# TYPE images_total counter",
    ] + [line for line in lines if line.startswith("# TYPE images_created")]
    assert samples(text, "images_total") == {"0": 1, "1": 2}
    assert 'images_total{front="1",result="ok"} 2.0' in lines
    assert samples(text, "inside") == {"0": 7, "1": 7}
    assert "# TYPE took_seconds histogram" in lines
    assert 'took_seconds_bucket{front="0",le="2.0"} 1.0' in lines
    assert 'front="2"' not in text
    assert [line for line in open_metrics.splitlines() if line.startswith("# TYPE")] == [
        "# TYPE images counter", "# TYPE inside gauge", "# TYPE took_seconds histogram",
    ]  # fmt: skip
    assert samples(text, "images_created").keys() == {"0", "1"}


def test_a_share_is_of_all_that_the_machine_has(tmp_path: Path):
    """What is bounded is divided, rounded up, and at least 1; the rest is everybody's."""
    settings = Settings(fronts=4, decode_workers=10, engine_threads=4, max_queue=1022, max_calls=1, max_batch=16)
    share = share_of(settings, listen=Address("::1", 50051), caller_id_key=tmp_path / "key")

    assert (share.decode_workers, share.engine_threads, share.max_queue, share.max_calls) == (3, 1, 256, 1)
    assert {name: 4 * getattr(share, name) >= getattr(settings, name) for name in SHARED} == dict.fromkeys(SHARED, True)
    assert (share.listen, share.admin, share.caller_id_key_file) == ("[::1]:50051", "127.0.0.1:0", tmp_path / "key")
    assert (share.max_batch, share.fronts) == (16, 4)


def test_a_front_is_told_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What it hears is its share and its number, whatever the environment says, and however many quotas there are."""
    settings = Settings(
        fronts=2,
        artifacts={"ct": Path("/artifacts/ct")},
        quotas={f"cn:{i}": {"images_per_s": 5} for i in range(5000)},
        jwt_scope_claims=("scope",),
        access_log=False,
        queue_budget_s=0.25,
        caller_id_key_file=tmp_path / "theirs",
    )
    share = share_of(settings, listen=Address("127.0.0.1", 1), caller_id_key=tmp_path / "key")
    line = told(1, share)
    monkeypatch.setenv("DEEPMCAT_MAX_BATCH", "3")
    monkeypatch.setenv("DEEPMCAT_ACCESS_LOG", "true")

    assert heard(line) == (1, share)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert share.caller_id_key_file == tmp_path / "theirs"


def test_fronts_have_no_administration():
    """An administrator's call would reach one front of several, so that a start with both is refused with a way out."""
    with pytest.raises(ConfigError, match=r"fronts is 2 and admin_service is on.*leave fronts at 1"):
        load(flags={"fronts": 2}, sets=["admin_service=true"])


async def test_draining_has_an_end(log):
    """Fronts that do not stop are killed when they have had their time, and the exit code says so."""

    def command(ready_file: Path) -> list[str]:
        addresses = json.dumps({"listen": "127.0.0.1:1", "admin": "127.0.0.1:2"})
        partial = f"{ready_file}.partial"
        return ["sh", "-c", f"trap '' TERM; echo '{addresses}' > {partial}; mv {partial} {ready_file}; exec cat"]

    stop = asyncio.Event()
    registry = CollectorRegistry()
    with Admin(ANY, registry) as admin:
        fronts = Fronts(2, command, lambda number, folder: b"", admin, registry, patience_s=0.1)
        running = asyncio.create_task(fronts.run(ANY, None, stop, asyncio.Event()))
        while "fronts serving" not in log.getvalue():  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.02)
        stop.set()
        assert await running == 137

    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events == ["fronts serving", "admin listening", "fronts did not stop", "fronts stopped"]


def test_a_front_is_started_as_its_supervisor():
    """What keeps the environment and a user's own packages out of the one keeps them out of the other."""
    program = "import sys; sys.path[:0] = sys.argv[1:]; from deepmcat_server.fronts import front_command; "
    program += "print(*front_command('artifact', 'ready'))"
    for flags in (["-I"], ["-s", "-E", "-O", "-O"], ["-Werror::UserWarning"], []):
        command = [sys.executable, *flags, "-c", program, *filter(None, sys.path)]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        passed = printed[1 : printed.index("-m")]
        assert {*flags, "-P"} <= set(passed)
        assert passed.count("-O") == flags.count("-O")


@pytest.mark.slow
def test_a_stopped_front_is_replaced(start, onnx_artifact: Path, pngs: list[bytes]):
    """A process that gets no time any more would keep its connections waiting: it is ended."""
    server = start(onnx_artifact, "--fronts", "2", "--set", "drain_s=0")
    stopped = children(server.process.pid)[0]
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: has_ended(stopped))
    eventually(lambda: answers(server, "/metrics", "deepmcat_front_restarts_total") == {"": 1})
    eventually(lambda: answers(server, "/metrics", "deepmcat_fronts") == {"": 2})

    assert b"front hangs" in server.log.read_bytes()
    with connection(server.listen) as stub:
        request = pb.CategorizeRequest(image=pb.Image(encoded=pngs[1]))
        assert stub.Categorize(request, timeout=60).categorization.assignment.cluster_id == 1
    assert server.stop() == 0, server.log.read_text()


def test_no_folder_for_temporary_files_is_told(tmp_path: Path):
    """With the way out; a front needs one while it starts."""
    program = """
import sys, tempfile
from deepmcat_client.cli import main
tempfile.tempdir = sys.argv.pop(1)
sys.exit(main(["serve", *sys.argv[1:]]))
"""
    options = ["--fronts", "2", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    command = [sys.executable, "-c", program, str(tmp_path / "none"), str(tmp_path), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 2, ended.stderr
    assert "set TMPDIR" in ended.stderr


@pytest.mark.slow
def test_fronts_import_nothing_from_where_they_are_started(start, onnx_artifact: Path, tmp_path: Path, monkeypatch):
    """A folder of somebody's files may have a file that is called like a module."""
    (tmp_path / "uvloop.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    server = start(onnx_artifact, "--fronts", "2", "--set", "drain_s=0")
    assert get(server.admin, "/readyz")[0] == 200
    assert server.stop() == 0, server.log.read_text()


def test_a_front_whose_supervisor_went_early_ends(program, tmp_path: Path):
    """Half of what it is told is nothing to start with, nor to complain of."""
    command = [sys.executable, "-c", program, str(tmp_path), "--as-front"]
    for heard_so_far in ("", '[0, {"max_queue"'):
        ended = subprocess.run(command, input=heard_so_far, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (1, "")


def test_what_is_wrong_is_told_once(tmp_path: Path):
    """A front that cannot start ends all with its exit code and its sentence, once; no engine was loaded for it."""
    program = """
import sys
from deepmcat_client.cli import main
code = main(["serve", *sys.argv[1:]])
print(sorted({"torch", "onnxruntime", "faiss"} & set(sys.modules)))
sys.exit(code)
"""
    options = ["--fronts", "3", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    command = [sys.executable, "-c", program, str(tmp_path / "nowhere"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout) == (2, "[]\n"), ended.stderr
    sentence, *events = ended.stderr.splitlines()
    assert sentence.startswith("deepmcat: there is no artifact at")
    assert [json.loads(event)["event"] for event in events] == ["fronts stopped"]


def test_both_fronts_answer_and_a_dead_one_comes_back(start, onnx_artifact: Path, pngs: list[bytes]):
    """Connections reach both; one that is killed is started again, while the other answers and metrics say so."""
    server = start(onnx_artifact, "--fronts", "2", "--set", "drain_s=0")
    request = pb.CategorizeRequest(image=pb.Image(encoded=pngs[1]))
    reached: dict[str, float] = {}
    while set(reached) < {"0", "1"} or not all(reached.values()):
        with connection(server.listen) as stub:
            assert stub.Categorize(request, timeout=60).categorization.assignment.cluster_id == 1
        reached = answers(server, "/metrics", "deepmcat_images_total")
    assert get(server.admin, "/livez") == get(server.admin, "/readyz") == (200, "ok\n")
    assert answers(server, "/metrics", "deepmcat_fronts") == {"": 2}
    assert answers(server, "/metrics", "deepmcat_fronts_wanted") == {"": 2}
    events = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {line.get("front") for line in events if line["event"] == "listening"} == {0, 1}
    assert [line.get("front") for line in events if line["event"] == "admin listening"] == [None]

    killed, other = children(server.process.pid)
    assert os.getpgid(killed) != os.getpgid(other) != os.getpgid(server.process.pid)  # Ctrl-C is for the supervisor
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: b"front died" in server.log.read_bytes())
    assert answers(server, "/metrics", "deepmcat_fronts") == {"": 1}
    for _ in range(5):
        with connection(server.listen) as stub:
            assert stub.Categorize(request, timeout=60).categorization.assignment.cluster_id == 1
        assert get(server.admin, "/readyz")[0] == 200
    eventually(lambda: answers(server, "/metrics", "deepmcat_fronts") == {"": 2})
    assert answers(server, "/metrics", "deepmcat_front_restarts_total") == {"": 1}
    assert answers(server, "/metrics", "deepmcat_ready") == {"0": 1, "1": 1}
    assert server.stop() == 0, server.log.read_text()
    calls = [line for line in map(json.loads, server.log.read_text().splitlines()) if line["event"] == "call"]
    assert {line["front"] for line in calls} == {0, 1}
    assert len({line["caller_id"] for line in calls}) == 1  # one caller, whichever front it comes to


class Caller(threading.Thread):
    """Calls one by one on a connection of its own until `enough`. wrong: what was not answered as it should."""

    def __init__(self, listen: str, request: pb.CategorizeRequest) -> None:
        super().__init__()
        self.enough = threading.Event()
        self.calls = 0
        self.wrong: list[object] = []
        self._listen, self._request = listen, request

    def run(self) -> None:
        with connection(self._listen) as stub:
            while not self.enough.is_set():
                try:
                    answer = stub.Categorize(self._request, timeout=60)
                except grpc.RpcError as error:
                    self.wrong.append(error)
                    continue
                self.calls += 1
                if answer.categorization.assignment.cluster_id != 2:
                    self.wrong.append(answer)


@pytest.mark.slow
def test_a_drain_loses_no_call(start, onnx_artifact: Path, pngs: list[bytes]):
    """SIGTERM under load, to every process at once as service managers send it: what has begun is answered, exit 0."""
    server = start(onnx_artifact, "--fronts", "2", "--set", "drain_s=5")
    request = pb.CategorizeRequest(image=pb.Image(encoded=pngs[2]))
    callers = [Caller(server.listen, request) for _ in range(8)]
    for caller in callers:
        caller.start()
    try:
        eventually(lambda: all(caller.calls > 5 for caller in callers))
        for pid in (server.process.pid, *children(server.process.pid)):
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: server.log.read_bytes().count(b'"draining"') == 2)
        eventually(lambda: get(server.admin, "/readyz") == (503, "not ready\n"))  # its own signal may be the last
        before = [caller.calls for caller in callers]
        eventually(lambda: all(caller.calls > calls for caller, calls in zip(callers, before, strict=True)))
    finally:
        for caller in callers:
            caller.enough.set()
            caller.join()

    assert [caller.wrong for caller in callers] == [[]] * len(callers)
    assert server.process.wait(60) == 0, server.log.read_text()


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(start, onnx_artifact: Path):
    """The exit code is that of one server, and nothing is left."""
    server = start(onnx_artifact, "--fronts", "2", "--set", "drain_s=600")
    processes = descendants(server.process.pid)
    server.process.send_signal(signal.SIGINT)
    eventually(lambda: server.log.read_bytes().count(b'"draining"') == 2)
    assert server.stop() == 130
    eventually(lambda: all(map(has_ended, processes)))


@pytest.mark.slow
def test_nothing_outlives_a_killed_supervisor(start, onnx_artifact: Path, tmp_path: Path, monkeypatch):
    """Fronts and their decoding workers end when the supervisor is gone, whatever it died of."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for what it leaves behind
    server = start(onnx_artifact, "--fronts", "2")
    processes = descendants(server.process.pid)
    server.process.kill()
    server.process.wait()

    assert len(processes) >= 4
    eventually(lambda: all(map(has_ended, processes)))
