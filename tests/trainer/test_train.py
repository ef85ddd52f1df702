"""`deepmcat train`: what it opens, what it refuses, what it leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deepmcat_core.artifact import Artifact
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.commands.train import command as train
from deepmcat_trainer.dataset import LABELS, SOURCES

SIZE = 32
QUICK = ["epochs=2", "k=4", "pca_dim=8", "batch_size=32", "final.fine_k=8"]
SMALL = {"recipe": "deepmcat2021-small", "device": "cpu"}


def patterns(n=200):
    """Three patterns with noise, (n, SIZE, SIZE) uint8."""
    rng = np.random.default_rng(0)
    coarse = np.random.default_rng(5).integers(0, 256, size=(3, 4, 4))
    noisy = np.kron(coarse, np.ones((1, SIZE // 4, SIZE // 4)))[np.arange(n) % 3]
    return np.clip(noisy + rng.normal(scale=8, size=noisy.shape), 0, 255).astype(np.uint8)


SPLITS = ["fit"] * 160 + ["calibration"] * 30 + ["test"] * 10


@pytest.fixture(name="dataset", scope="module")
def dataset_fixture(tmp_path_factory, make_dataset):
    """200 labelled images: 160 to fit, 30 for calibration, 10 for testing."""
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    return make_dataset(folder, patterns(), SPLITS, labels=[f"kind {i % 3}" for i in range(200)])


@dataclass
class Made:
    artifact: Artifact
    folder: Path
    opened: list[str]


@pytest.fixture(name="made", scope="module")
def made_fixture(dataset, tmp_path_factory):
    """The artifact of an uninterrupted run with seed 7, and the names of the files that it opened."""
    folder = tmp_path_factory.mktemp("made")
    with opened_files() as names:
        train(dataset, folder / "a", set_=QUICK, seed=7, **SMALL)
    return Made(Artifact.load(folder / "a"), folder, names)


_opened: list[str] | None = None


def _record(event, arguments):
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(Path(arguments[0]).name)


sys.addaudithook(_record)


@contextmanager
def opened_files():
    """The names of the files that Python opens within the block."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def assert_equal(a, b):
    """Whether two artifacts were learnt alike, to the bit."""
    assert np.array_equal(a.centroids, b.centroids)
    assert np.array_equal(a.calibration.scores, b.calibration.scores)
    assert all(np.array_equal(value, b.encoder_weights()[name]) for name, value in a.encoder_weights().items())
    assert a.manifest.training["final"] == b.manifest.training["final"]
    assert [c.clusters for c in a.catalog.categories] == [c.clusters for c in b.catalog.categories]


def test_training_never_opens_a_label_or_a_source(made):
    """Of the dataset it opens what says nothing of labels and paths."""
    assert "dataset.json" in made.opened
    assert not {LABELS, SOURCES} & set(made.opened)


def test_labels_and_test_images_change_no_bit(made, make_dataset, tmp_path):
    """Broken labels, broken sources and other test images: the same encoder, centroids and calibration."""
    pixels = patterns()
    pixels[190:] = 0
    other = make_dataset(tmp_path / "other", pixels, SPLITS)
    for name in (LABELS, SOURCES):
        (other / name).write_bytes(b"no parquet")
    train(other, tmp_path / "b", set_=QUICK, seed=7, **SMALL)

    assert_equal(made.artifact, Artifact.load(tmp_path / "b"))


def test_the_artifact_says_how_it_was_made(made):
    """Recipe, settings as they came out, seed, epochs, version; and the run folder is gone."""
    training = made.artifact.manifest.training

    assert (training["recipe"], training["seed"], training["epochs"]) == ("deepmcat2021-small", 7, 2)
    assert training["config"]["batch_size"] == 32
    assert training["config"]["lr"] == 0.02
    assert training["config"]["final"]["seed"] == 7
    assert training["scores"]["loss"] > 0
    assert {"commit", "version"} <= training.keys()
    assert [path.name for path in made.folder.iterdir()] == ["a"]


def test_settings_come_from_the_file_and_flags_win(dataset, tmp_path):
    """The file may name the recipe; --set is over it."""
    config = tmp_path / "train.toml"
    config.write_text('recipe = "deepmcat2021-small"\nepochs = 1\nk = 4\npca_dim = 8\n[final]\nfine_k = 6\n')
    train(dataset, tmp_path / "a", config=config, set_=["k=5"], device="cpu")
    made = Artifact.load(tmp_path / "a").manifest

    assert (made.training["config"]["k"], made.training["config"]["epochs"]) == (5, 1)
    assert made.k <= 6


def test_nothing_to_resume_is_no_new_beginning(dataset, tmp_path):
    """A slip in --out does not cost the hours of training anew: the missing folder is named, and the way out."""
    with pytest.raises(ConfigError, match=r"there is no .*slip\.run; correct --out, or leave --resume away"):
        train(dataset, tmp_path / "slip", resume=True, **SMALL)
    (tmp_path / "a.run").mkdir()
    with pytest.raises(ConfigError, match=r"a\.run has no finished epoch; correct --out, or leave --resume away"):
        train(dataset, tmp_path / "a", resume=True, **SMALL)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"recipe": "deepmcat21"}, "no recipe 'deepmcat21'. Did you mean 'deepmcat2021'"),
        ({"set_": ["epoch=3"]}, "no setting 'epoch'. Did you mean 'epochs'"),
        ({"set_": ["final.fine=3"]}, "no setting 'final.fine'. Did you mean 'fine_k'"),
        ({"set_": ["epochs=many"]}, "setting 'epochs' is 'many'"),
        ({"set_": ["crop_scale=[0.9, 0.1]"]}, "from low to high, not from 0.9 to 0.1"),
        ({"set_": ["lr=-1"]}, "setting 'lr' is -1: .* greater than 0"),
        ({"set_": ["encoder=resnet81"]}, "no encoder 'resnet81'. Did you mean 'resnet18'"),
        ({"set_": ["final.fine_k=1000"]}, "the dataset has 160 images to fit"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"time_budget": "soon"}, "--time-budget is 'soon'"),
        ({"seed": -1}, "setting 'seed' is -1"),
    ],
)
def test_mistakes_are_sentences_before_anything_is_trained(dataset, tmp_path, arguments, sentence):
    """One sentence with the way out; nothing is left behind."""
    with pytest.raises(ConfigError, match=sentence):
        train(dataset, tmp_path / "a", **(SMALL | arguments))

    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_are_refused_at_once(dataset, tmp_path):
    """A dataset that is none, an artifact that is there already, a parent that is a file."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="there is no dataset at"):
        train(tmp_path / "nowhere", tmp_path / "a", **SMALL)
    with pytest.raises(ConfigError, match="exists already"):
        train(dataset, tmp_path / "taken", **SMALL)
    with pytest.raises(ConfigError, match=r"cannot write to .*; choose another --out"):
        train(dataset, tmp_path / "file" / "a", **SMALL)
    with pytest.raises(ConfigError, match=r"cannot write to .*; choose another --out"):
        train(dataset, tmp_path / ("a" * 300), **SMALL)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make another")
def test_a_place_where_even_root_cannot_write_is_told_before_training(dataset, capsys):
    """Permissions that say yes are not believed: nothing is trained before a folder could be made there."""
    with pytest.raises(ConfigError, match=r"cannot write to /proc: .*; choose another --out"):
        train(dataset, Path("/proc/z"), **SMALL)

    assert capsys.readouterr().err == ""


def test_too_few_images_name_the_recipe_that_needs_none(make_dataset, tmp_path):
    """Forty images: recipes that train nothing are the way out."""
    small = make_dataset(tmp_path / "small", patterns(40), ["fit"] * 40)

    with pytest.raises(ConfigError, match="--recipe stages or frozen"):
        train(small, tmp_path / "a", **SMALL)


def test_a_broken_run_goes_on_where_it_was(dataset, made, tmp_path, capsys):
    """A final stage that failed is repeated without training: settings are remembered, and others refused."""
    out = tmp_path / "a"
    with interfering(lambda line: "epoch 2/2" in line and out.mkdir()), pytest.raises(ConfigError, match="exists"):
        train(dataset, out, set_=QUICK, seed=7, **SMALL)  # somebody took the name meanwhile
    out.rmdir()

    with pytest.raises(ConfigError, match="holds an unfinished run: go on with --resume"):
        train(dataset, out, set_=QUICK, **SMALL)
    with pytest.raises(ConfigError, match=r"setting 'lr' is 0.01; the run to resume has 0.02"):
        train(dataset, out, resume=True, set_=["lr=0.01"])
    with pytest.raises(ConfigError, match="of recipe 'deepmcat2021-small', not 'frozen'"):
        train(dataset, out, resume=True, recipe="frozen")
    train(dataset, out, resume=True, device="cpu", set_=[])

    assert "resuming after epoch 2 of 2" in capsys.readouterr().err
    assert not (tmp_path / "a.run").exists()
    assert_equal(made.artifact, Artifact.load(out))


@pytest.mark.slow
def test_a_killed_run_that_is_resumed_makes_the_same_artifact(made, dataset, tmp_path):
    """kill -9 after the first epoch, then a bare --resume: encoder, clusters and categories of an uninterrupted run."""
    begin = [sys.executable, "-m", "deepmcat_client", "train", str(dataset), "--out", str(tmp_path / "a")]
    sets = [word for setting in QUICK for word in ("--set", setting)]
    arguments = ["--recipe", SMALL["recipe"], "--device", "cpu", "--seed", "7", *sets]
    with subprocess.Popen([*begin, *arguments], stderr=subprocess.PIPE, text=True) as process:
        while not (line := process.stderr.readline()).startswith("epoch 1/2"):
            assert line, "training ended before its first epoch"
        process.kill()
    assert not (tmp_path / "a").exists()

    resumed = subprocess.run([*begin, "--resume", "--device", "cpu"], capture_output=True, text=True)

    assert "resuming after epoch 1 of 2" in resumed.stderr
    assert_equal(made.artifact, Artifact.load(tmp_path / "a"))


@contextmanager
def interfering(act):
    """Call `act` with each line that is written to stderr."""
    before = sys.stderr

    class Stream:
        def write(self, text):
            act(text)
            return before.write(text)

        def flush(self):
            before.flush()

        def isatty(self):
            return False

    sys.stderr = Stream()
    try:
        yield
    finally:
        sys.stderr = before


def test_the_default_recipe_is_named_in_one_line(dataset, tmp_path, capsys):
    """Whoever names no recipe reads which it is, and the others, once everything given has been checked."""
    with pytest.raises(ConfigError, match="no setting 'no'"):
        train(dataset, tmp_path / "a", set_=["no=1"])
    with pytest.raises(ConfigError, match="there is no dataset"):
        train(tmp_path / "nowhere", tmp_path / "a")
    assert capsys.readouterr().err == ""

    with pytest.raises(ConfigError):
        train(dataset, tmp_path / "a", set_=[f"encoder=hf:{tmp_path}/nowhere"])
    assert capsys.readouterr().err.startswith("recipe ")


def heed_interrupts():
    """In the child: a shell starts background jobs with SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_interrupted_training_says_how_to_go_on(dataset, tmp_path):
    """Ctrl-C: one line, exit code 130, no artifact, and --resume finishes it."""
    begin = [sys.executable, "-m", "deepmcat_client", "train", str(dataset), "--out", str(tmp_path / "a")]
    arguments = ["--recipe", "deepmcat2021-small", "--device", "cpu", "--set", "epochs=400", "--set", "k=4"]
    with subprocess.Popen(
        [*begin, *arguments], stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        lines = [process.stderr.readline()]
        while lines[-1] and not lines[-1].startswith("epoch 1/400"):
            lines.append(process.stderr.readline())
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()

    assert process.returncode == 130
    assert "interrupted: the same command with --resume" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "a").exists()
    done = subprocess.run([*begin, "--resume", "--time-budget", "1s"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "resuming after epoch" in done.stderr
    assert "time budget: stopping" in done.stderr
    assert not any(line.startswith("epoch ") for line in done.stderr.splitlines())  # none would have fitted
    assert (tmp_path / "a" / "manifest.json").exists()
