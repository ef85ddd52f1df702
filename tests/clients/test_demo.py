"""`deepmcat demo`: what it takes, what it replaces, and the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepmcat_client import cli
from deepmcat_client.commands.demo import MARKER, _was_sent, make_room, packaged_images, require_packages
from deepmcat_client.commands.doctor import installed
from deepmcat_client.errors import CorruptImage, MissingExtra, UnreadableFile


def test_the_images_are_those_of_the_packages() -> None:
    """Real DICOM from pydicom and pydicom-data; no text files and no scripts."""
    names = {file.name for file in packaged_images()}

    assert {"CT_small.dcm", "MR_small.dcm", "emri_small.dcm"} <= names
    assert not {name for name in names if name.endswith((".txt", ".py", ".json"))}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out is refused where it holds anything but an earlier demo."""
    (tmp_path / "thesis.tex").write_text("")

    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "is not an earlier demo" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_of_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--data without a file in it: one sentence, and nothing is made."""
    (tmp_path / "data").mkdir()

    assert cli.main(["demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no file in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_ends_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder without a decodable image: prepare's own sentence, then which step it was; exit code 2."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes").write_text("no image")

    assert cli.main(["demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2

    error = capfd.readouterr().err
    assert "`deepmcat prepare` ended with exit code 2; its message is above" in error
    assert "Traceback" not in error


def test_what_never_left_is_not_expected_in_the_servers_count(tmp_path: Path) -> None:
    """An empty file is answered by the client; one that the server found corrupt was sent."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken").write_bytes(b"x")

    sent = {file.name: _was_sent(file, CorruptImage("")) for file in tmp_path.iterdir()}

    assert sent == {"empty": False, "broken": True}
    assert not _was_sent(tmp_path / "gone", UnreadableFile(""))


def test_an_earlier_demo_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    """The second demo removes what the first one made; what somebody put beside it stays."""
    out = tmp_path / "demo"
    make_room(out)
    (out / "dataset").mkdir()
    (out / "dataset" / "images.npy").write_bytes(b"")
    (out / "my notes").write_text("")

    make_room(out)

    assert {path.name for path in out.iterdir()} == {MARKER, "my notes"}


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    """Every image is categorized, the server counts what was sent, and ends cleanly."""
    out = tmp_path / "demo"

    ended = subprocess.run(
        [sys.executable, "-m", "deepmcat_client", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "exactly what was sent" in ended.stdout
    assert "ended with exit code 0" in ended.stdout
    assert list((out / "sheets").glob("*.png"))


def test_what_the_demo_needs_is_looked_for_first() -> None:
    """A package of any extra that is missing is named before anything runs; [gpu] does as well as [cpu]."""
    found = installed()
    require_packages(found)

    for package in ("torch", "pyarrow", "prometheus-client", "faiss-cpu"):
        lacking = {name: version for name, version in found.items() if name != package}
        with pytest.raises(MissingExtra, match=rf"needs {package}, .*deepmcat\[server,trainer,pretrained,cpu\]"):
            require_packages(lacking)
    on_a_gpu = {name: version for name, version in found.items() if name not in ("faiss-cpu", "onnxruntime")}
    require_packages({**on_a_gpu, "faiss-gpu": "1"})
