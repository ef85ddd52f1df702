"""Several processes come to what one comes to, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from deepmcat_core.artifact import Artifact
from deepmcat_trainer.distributed import ALONE, World, own_device

sys.path.insert(0, str(Path(__file__).parent))
import distributed_worker

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN += ["--local-addr", "127.0.0.1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
if sys.platform == "linux":  # processes of one machine meet on it, whatever its name stands for elsewhere
    ENVIRONMENT |= {"GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(name="made", scope="module")
def made_fixture(tmp_path_factory):
    """What one process makes, and each of two."""
    out = tmp_path_factory.mktemp("made") / "made"
    command = [*TORCHRUN, str(Path(__file__).with_name("distributed_worker.py")), str(out)]
    ran = subprocess.run(command, env=ENVIRONMENT, check=False, timeout=120, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return distributed_worker.everything(ALONE), *(dict(np.load(f"{out}-{rank}.npz")) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kmeans_all", "kmeans_sample", "labels_all", "labels_sample"])
def test_clusters_are_those_of_one_process(made, what):
    """Whether all rows or a sample train: each process hears of the clusters that one process finds."""
    alone, *both = made
    for ours in both:
        assert len(np.unique(alone[what])) > 5
        assert adjusted_rand_score(alone[what], ours[what]) >= 0.999
    np.testing.assert_array_equal(both[0][what], both[1][what])


@pytest.mark.slow
def test_components_are_those_of_one_process(made):
    """Means and covariances add up over the processes."""
    alone, *both = made
    for ours in both:
        for what in ("components", "spectrum", "direction"):
            np.testing.assert_allclose(ours[what], alone[what], atol=1e-9)


@pytest.mark.slow
def test_every_process_hears_of_all_features(made):
    """Each embeds its part of the images; together they have what one process has."""
    alone, *both = made
    assert np.abs(alone["features"]).min() > 0
    for ours in both:
        np.testing.assert_allclose(ours["features"], alone["features"], atol=1e-6)


@pytest.mark.slow
def test_a_step_is_that_of_one_process(made):
    """Parts of a batch, of different sizes, give the gradient and the loss of the batch."""
    alone, *both = made
    assert np.abs(alone["step"]).max() > 0.01
    for ours in both:
        np.testing.assert_allclose(ours["step"], alone["step"], atol=1e-5)
        np.testing.assert_allclose(ours["loss"], alone["loss"], rtol=1e-5)


@pytest.mark.parametrize(("n", "size"), [(10, 3), (2, 4), (0, 2), (7, 1)])
def test_parts_are_all_things_once(n, size):
    """Whatever the numbers, each thing is in one part, and parts are equal but for one thing."""
    parts = [World(rank, size).part(n) for rank in range(size)]
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    lengths = [len(range(n)[part]) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_alone_nothing_is_exchanged():
    """One process keeps what it has, and needs no backend."""
    rows = np.arange(6.0).reshape(3, 2)
    assert ALONE.gather(rows) is rows
    assert ALONE.collect(rows) is rows
    assert ALONE.tell(rows) is rows
    assert ALONE.span(3) == (0, 3)
    assert ALONE.decide(True)
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
    ALONE.barrier()


def test_a_cpu_is_shared(monkeypatch):
    """Processes on a CPU all have it; only GPUs are dealt out."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cpu") == "cpu"


def patterns(n):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(3, 4, 4))
    noisy = np.kron(coarse, np.ones((1, 8, 8)))[np.arange(n) % 3] + rng.normal(scale=12, size=(n, 32, 32))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(name="dataset", scope="module")
def dataset_fixture(make_dataset, tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", patterns(150), ["fit"] * 130 + ["calibration"] * 20)


def train(dataset, out, *more):
    """The command in two processes, in a group of its own."""
    command = [*TORCHRUN, "-m", "deepmcat_client", "train", str(dataset), "--out", str(out), "--device", "cpu"]
    command += ["--recipe", "deepmcat2021-small", "--set", "pca_dim=8", "--set", "k=6", *more]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def workers(parent):
    """The processes that torchrun started, by rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    environments = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    ranks = {pid: [v for v in environment if v.startswith(b"RANK=")] for pid, environment in environments.items()}
    return {int(found[0].partition(b"=")[2]): pid for pid, found in ranks.items() if found}


@pytest.mark.slow
def test_two_processes_train_one_artifact(dataset, tmp_path):
    """torchrun ends well, with one artifact and every line said once."""
    running = train(dataset, tmp_path / "artifact", "--set", "epochs=2")
    said, lines = running.communicate(timeout=200)
    assert running.returncode == 0, lines
    assert said.count("artifact ") == 1
    assert [lines.count(f"epoch {epoch}/2") for epoch in (1, 2)] == [1, 1]
    artifact = Artifact.load(tmp_path / "artifact")
    assert artifact.manifest.training["epochs"] == 2
    assert not (tmp_path / "artifact.run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by Linux's /proc")
@pytest.mark.parametrize("end", ["SIGKILL of the second process", "SIGTERM of torchrun"])
def test_a_run_that_was_ended_goes_on(dataset, tmp_path, end):
    """When one process dies all end, none hangs; --resume goes on after the last finished epoch."""
    out, state = tmp_path / "artifact", tmp_path / "artifact.run" / "checkpoint.json"
    running = train(dataset, out, "--set", "epochs=400")
    deadline = time.monotonic() + 120
    while not state.exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if end.startswith("SIGKILL"):
        os.kill(workers(running.pid)[1], signal.SIGKILL)
    else:
        running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert not out.exists()
    finished = len(json.loads(state.read_text())["history"])
    assert 1 <= finished < 400

    limit = ("--time-budget", "1s", "--resume")  # what is resumed goes on for an epoch at most, and ends
    resumed = train(dataset, out, "--set", "epochs=400", *limit)
    _, lines = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, lines
    assert lines.count(f"resuming after epoch {finished} of 400") == 1
    assert Artifact.load(out).manifest.training["epochs"] >= finished


@pytest.mark.slow
def test_an_error_is_said_and_ends_all(dataset, tmp_path):
    """A setting that does not fit the number of processes is refused in a sentence."""
    running = train(dataset, tmp_path / "artifact", "--set", "batch_size=3")
    _, lines = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "setting 'batch_size' is 3; 2 processes need at least 4" in lines
