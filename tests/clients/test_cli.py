"""The command line, in this process: exit codes, sentences, and what goes to stdout."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import cli, wire
from deepmcat_client.commands.categorize import _Report
from deepmcat_client.series import SeriesTable

from .fakes import ARTIFACT_ID, FakeServicer, Received, answer, respond, serving_in_thread

Captured = pytest.CaptureFixture[str]


@pytest.fixture(name="server")
def server_fixture() -> Iterator[str]:
    with serving_in_thread(FakeServicer()) as address:
        yield address


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    """Two images, one of them in a folder, and things that are passed over."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.dcm").write_bytes(b"12345")
    (folder / "inner" / "a[1].dcm").write_bytes(b"123")
    (folder / ".hidden").write_bytes(b"x")
    return folder


def test_help_lists_every_command(capsys: Captured) -> None:
    """`deepmcat` and `deepmcat --help` name every command."""
    assert [cli.main([]), cli.main(["--help"])] == [0, 0]

    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in cli.COMMANDS)


def test_the_version_is_the_distributions(capsys: Captured) -> None:
    """`--version` gives name and version."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("deepmcat ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["categorise"],
            "deepmcat: there is no command 'categorise'. Did you mean 'categorize'? See: deepmcat --help\n",
        ),
        (["xyzzy"], "deepmcat: there is no command 'xyzzy'. See: deepmcat --help\n"),
        (["categorize"], "deepmcat: Missing argument"),
        (["categorize", "x", "--srever", "y"], "--server"),
        (["categorize", "."], "deepmcat: give either --server HOST:PORT or --artifact DIR\n"),
        (["categorize", "/not/there", "--server", "x:1"], "deepmcat: there is no file or folder /not/there\n"),
        (["describe"], "deepmcat: give either an ARTIFACT or --server HOST:PORT\n"),
        (["describe", "/not/there"], "deepmcat: there is no artifact at /not/there; "),
        (["demo", "--data", "/not/there"], "deepmcat: there is no file or folder /not/there\n"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], sentence: str, capsys: Captured) -> None:
    """What a person can correct: exit code 2, one line on stderr that names the way out, nothing on stdout."""
    assert cli.main(arguments) == 2

    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_table_of_answers(server: str, images: Path, capsys: Captured) -> None:
    """Folders are walked; every image is a row with cluster, distance and p."""
    assert cli.main(["categorize", str(images), "--server", server]) == 0

    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["file", "category", "cluster", "distance", "p", "outlier"]
    assert rows == [
        [str(images / "b.dcm"), "CT", "CHEST", "5", "0.250", "0.500", "no"],
        [str(images / "inner" / "a[1].dcm"), "CT", "CHEST", "3", "0.250", "0.500", "no"],
    ]


@pytest.mark.parametrize("series", [None, SeriesTable(lambda file: ("folder", str(file.parent)))])
def test_a_table_keeps_little_of_each_answer(series: SeriesTable | None) -> None:
    """What waits for the end is a row's cells or a vote, not candidates, frames and embeddings."""
    report = _Report(jsonl=False, series=series)
    tracemalloc.start()
    try:
        for number in range(10):
            message = answer(b"x" * number)
            message.embedding.data = bytes(100_000)
            message.frames.extend([message.frames[0]] * 100)
            report.add(Path(f"folder/{number}"), wire.categorization(message))
        del message
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10 * 4_000


def test_json_lines_are_all_that_stdout_has(server: str, images: Path, capsys: Captured) -> None:
    """Every line of stdout is an object; errors are objects too; counts go to stderr; a failure is exit code 1."""
    (images / "c.dcm").write_bytes(b"corrupt")
    (images / "d.dcm").write_bytes(b"report")

    assert cli.main(["categorize", str(images), "--server", server, "--jsonl"]) == 1

    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["b.dcm", "c.dcm", "d.dcm", "a[1].dcm"]
    assert lines[0]["assignment"]["cluster_id"] == 5
    assert lines[0]["frames"][0]["frame_number"] == 1
    assert lines[1]["error"]["reason"] == "CORRUPT_IMAGE"
    assert "2 images categorized, 1 not images, 1 failed (1 CORRUPT_IMAGE)" in captured.err


def test_what_is_no_image_is_no_failure(server: str, images: Path, capsys: Captured) -> None:
    """A report among the images is counted apart and leaves the exit code 0."""
    (images / "d.dcm").write_bytes(b"report")

    assert cli.main(["categorize", str(images), "--server", server]) == 0
    assert "1 not images" in capsys.readouterr().err


def test_a_folder_without_files_is_a_mistake(server: str, tmp_path: Path, capsys: Captured) -> None:
    """An empty folder is told, not passed over in silence."""
    assert cli.main(["categorize", str(tmp_path), "--server", server]) == 2
    assert f"there is no file in {tmp_path}" in capsys.readouterr().err


def test_nobody_at_the_address(images: Path, capsys: Captured) -> None:
    """A server that does not answer is exit code 2 with its address."""
    assert cli.main(["categorize", str(images), "--server", "127.0.0.1:1", "--timeout", "1"]) == 2
    notes = capsys.readouterr().err
    assert "0 images categorized, 2 not answered" in notes
    assert "no DeepMCAT server answers at 127.0.0.1:1" in notes


def test_what_a_server_leaves_unanswered_is_counted(images: Path, capsys: Captured) -> None:
    """Where a server fails in the middle: the answers until then, how many files have none, and exit code 2."""

    async def fails_after_one(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for image in received:
            image.item_id = "1"  # which is out of order from the second on, and ends the stream for good
            yield respond(image)

    for number in range(100):
        (images / f"c{number}.dcm").write_bytes(b"x")
    with serving_in_thread(FakeServicer(stream=fails_after_one)) as address:
        assert cli.main(["categorize", str(images), "--server", address]) == 2

    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["file", str(images / "b.dcm")]
    assert captured.err.splitlines() == [
        "1 images categorized, 101 not answered",
        "deepmcat: the server answered out of order, which deepmcat.v1 does not allow",
    ]


def test_one_row_a_series(server: str, images: Path, capsys: Captured) -> None:
    """Files without a SeriesInstanceUID go by their folder; series are numbered."""
    assert cli.main(["categorize", str(images), "--server", server, "--by", "series"]) == 0

    _, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows] == [["1", str(images), "1"], ["2", str(images / "inner"), "1"]]


def test_a_series_has_a_number_and_its_uid_stays_hidden(server: str, tmp_path: Path, capsys: Captured) -> None:
    """Real DICOM files: one row for a series over two folders, and no UID on stdout or stderr."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    uid = pydicom.uid.generate_uid()
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    header.SeriesInstanceUID = uid
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        header.save_as(tmp_path / name / "image.dcm")

    assert cli.main(["categorize", str(tmp_path), "--server", server, "--by", "series", "--jsonl"]) == 0

    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [(row["number"], row["images"]) for row in rows] == [(1, 2)]
    assert uid not in captured.out + captured.err


def test_describe_shows_what_is_served(server: str, capsys: Captured) -> None:
    """Identity, calibration note, limits and categories with their terms."""
    assert cli.main(["describe", "--server", server]) == 0

    text = capsys.readouterr().out
    for part in (
        ARTIFACT_ID,
        "efficientnet_lite0",
        "No outlier verdicts",
        "512 MiB",
        "onnxruntime",
        "CT 75%",
        "in float32",
    ):
        assert part in text
    assert "float16 on cuda passed: cosine 0.99980 or more, the same category for 100.00% of 512" in " ".join(
        text.split()
    )


def test_describe_as_json(server: str, capsys: Captured) -> None:
    """One object, with the catalog."""
    assert cli.main(["describe", "--server", server, "--json"]) == 0

    description = json.loads(capsys.readouterr().out)
    assert description["artifact"]["clusters"] == 8
    assert description["catalog"]["categories"][0]["fit_images"] == 12


def test_describe_reads_an_artifact_on_disk(artifact_folder: Path, capsys: Captured) -> None:
    """Without a server: the same facts, and no server's limits."""
    assert cli.main(["describe", str(artifact_folder), "--json"]) == 0

    description = json.loads(capsys.readouterr().out)
    assert description["serving"] is None
    assert {c["name"] for c in description["catalog"]["categories"]} == {"CT chest", "MR head"}
    assert description["artifact"]["calibration"]["groups"] == 1


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
from deepmcat_client.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("package", "arguments", "line"),
    [
        ("numpy", ["describe", "x"], "pip install 'deepmcat[core,cpu]'"),
        ("typer_of_no_one", ["describe", "x"], "there is no artifact at x"),
        ("pydantic_settings", ["serve", "x"], "pip install 'deepmcat[server,cpu]'"),
        ("pydicom", ["categorize", ".", "--server", "x:1", "--by", "series"], "pip install 'deepmcat[dicom]'"),
    ],
)
def test_a_missing_package_is_one_sentence_with_its_extra(package: str, arguments: list[str], line: str) -> None:
    """What the install lacks is said with the one line that brings it, exit code 2."""
    ended = run_python(HIDE.format(package=package, arguments=arguments))

    assert ended.returncode == 2
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_our_own_mistakes_say_where() -> None:
    """An unexpected error is exit code 70 with file and line; the traceback is for DEEPMCAT_DEBUG."""
    code = (
        "import sys, deepmcat_client.commands.doctor as d\n"
        "def command() -> None:\n    raise TypeError('secret')\n"
        "d.command = command\n"
        "from deepmcat_client.cli import main\nsys.exit(main(['doctor']))"
    )
    quiet, debug = run_python(code, DEEPMCAT_DEBUG=""), run_python(code, DEEPMCAT_DEBUG="1")

    assert (quiet.returncode, debug.returncode) == (70, 70)
    assert quiet.stderr.startswith("deepmcat: internal error (TypeError at ")
    assert "secret" not in quiet.stderr
    assert "Traceback" in debug.stderr


def test_an_interrupt_is_exit_code_130() -> None:
    """Ctrl-C ends quietly."""
    code = (
        "import sys, deepmcat_client.commands.doctor as d\n"
        "def command() -> None:\n    raise KeyboardInterrupt\n"
        "d.command = command\n"
        "from deepmcat_client.cli import main\nsys.exit(main(['doctor']))"
    )
    ended = run_python(code)

    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize("arguments", [["--help"], ["categorize", "--help"]])
def test_a_closed_pipe_is_no_drama(arguments: list[str]) -> None:
    """`deepmcat … | head` ends without a traceback."""
    program = subprocess.Popen(
        [sys.executable, "-m", "deepmcat_client", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    assert program.wait() == 141
    assert program.stderr.read() == b""
    program.stderr.close()
