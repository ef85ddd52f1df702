"""`categorize --out`: a file that survives its process, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc.status_pb2 import Status

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import cli
from deepmcat_client.errors import (
    CorruptImage,
    InvalidRequest,
    NotAnImage,
    ServerBusy,
    ServerError,
    UnreadableFile,
)
from deepmcat_client.journal import Journal

from .fakes import FakeServicer, Received, respond, serving_in_thread, status

Captured = pytest.CaptureFixture[str]


@pytest.fixture(name="servicer")
def servicer_fixture() -> FakeServicer:
    return FakeServicer()


@pytest.fixture(name="server")
def server_fixture(servicer: FakeServicer) -> Iterator[str]:
    with serving_in_thread(servicer) as address:
        yield address


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    """Twenty images of different sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1, 21):
        (folder / f"{number:02}.dcm").write_bytes(b"x" * number)
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    """The lines, each of which has to be whole."""
    return [json.loads(line) for line in out.read_text().splitlines()]


def assert_all_answered(out: Path, images: Path) -> None:
    """One line an image, in order, with its own answer."""
    found = [(Path(row["file"]).name, row["assignment"]["cluster_id"]) for row in rows(out)]
    assert found == [(file.name, file.stat().st_size) for file in sorted(images.glob("*.dcm"))]


def categorize(images: Path, server: str, out: Path, *more: str) -> int:
    return cli.main(["categorize", str(images), "--server", server, "--out", str(out), *more])


def test_answers_go_to_the_file_and_counts_to_stderr(server: str, images: Path, capsys: Captured) -> None:
    """The file is one of the folder that is walked, and no image; stdout stays empty."""
    out = images / "answers.jsonl"

    assert categorize(images, server, out) == 0

    assert_all_answered(out, images)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "20 images categorized\n"


def test_what_has_a_line_is_not_sent_again(server: str, servicer: FakeServicer, images: Path, tmp_path: Path) -> None:
    """A second run sends what is new and nothing else; a file that is named twice has one line."""
    out = tmp_path / "out"
    categorize(images, server, out)
    (images / "21.dcm").write_bytes(b"x" * 21)

    assert cli.main(["categorize", *[str(images)] * 2, "--server", server, "--out", str(out)]) == 0
    assert categorize(images, server, out) == 0

    assert_all_answered(out, images)
    assert len(servicer.received) == 21


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_last_line_is_done_again(server: str, images: Path, tmp_path: Path, cut: int) -> None:
    """Whatever part of the last line reached the disk, there is one whole line for its image afterwards."""
    out = tmp_path / "out"
    categorize(images, server, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])

    assert categorize(images, server, out) == 0
    assert out.read_bytes() == whole


def test_a_failed_image_has_a_line_and_keeps_the_exit_code(images: Path, tmp_path: Path, capsys: Captured) -> None:
    """An image's own error is final: it is not asked again, and every run that ends with it says so."""
    out = tmp_path / "out"
    (images / "05.dcm").write_bytes(b"corrupt")
    with serving_in_thread(FakeServicer()) as server:
        assert [categorize(images, server, out), categorize(images, server, out)] == [1, 1]

    assert capsys.readouterr().err.splitlines() == [
        "19 images categorized, 1 failed (1 CORRUPT_IMAGE)",
        "0 images categorized, 20 lines were there before",
    ]
    assert [row["error"]["reason"] for row in rows(out) if "error" in row] == ["CORRUPT_IMAGE"]


def test_what_may_pass_is_told_and_asked_again(images: Path, tmp_path: Path, capsys: Captured) -> None:
    """An image that the server fails on has no line; stderr says so, and the next run asks again."""
    bad = [True]

    async def fails_once(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for image in received:
            yield respond(image, Status(code=13, message="internal error") if bad and image.item_id == "3" else None)

    out = tmp_path / "out"
    with serving_in_thread(FakeServicer(stream=fails_once)) as server:
        assert categorize(images, server, out) == 1
        assert f"have no line in {out}: run it again" in capsys.readouterr().err
        bad.clear()
        assert categorize(images, server, out) == 0
    assert sorted(row["file"] for row in rows(out)) == [str(file) for file in sorted(images.iterdir())]


def test_a_busy_server_leaves_no_line(tmp_path: Path) -> None:
    """SERVER_BUSY is no answer of an image."""
    with Journal(tmp_path / "out") as journal:
        written = [
            journal.add(Path(str(n)), kind(""))
            for n, kind in enumerate((ServerBusy, ServerError, UnreadableFile, CorruptImage, NotAnImage))
        ]
    assert written == [False, False, False, True, True]
    assert [row["file"] for row in rows(tmp_path / "out")] == ["3", "4"]
    assert journal.answered.failed == 1


def test_answers_of_two_artifacts_do_not_mix(images: Path, tmp_path: Path, capsys: Captured) -> None:
    """Another artifact than that of the lines is refused before anything is sent, unless a flag allows it."""
    out, servicer = tmp_path / "out", FakeServicer()
    with serving_in_thread(servicer) as server:
        categorize(images, server, out)
        changed = out.read_text().replace("a" * 64, "b" * 64)
        out.write_text(changed)
        (images / "21.dcm").write_bytes(b"x" * 21)
        capsys.readouterr()

        assert categorize(images, server, out) == 2
        assert (
            "has answers of artifact bbbbbbbbbbbb, and what would answer now is aaaaaaaaaaaa" in capsys.readouterr().err
        )
        assert (out.read_text(), len(servicer.received)) == (changed, 20)
        assert {received.options.artifact_id for received in servicer.received} == {"a" * 64}

        assert categorize(images, server, out, "--mixed-artifacts") == 0
    assert [row["artifact_id"][0] for row in rows(out)] == ["b"] * 20 + ["a"]
    assert servicer.received[-1].options.artifact_id == ""


def test_an_artifact_that_goes_in_the_middle_ends_the_run(images: Path, tmp_path: Path, capsys: Captured) -> None:
    """What was answered stays; the rest is not answered by another artifact."""

    async def replaced(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for image in received:
            yield respond(image, status("ARTIFACT_NOT_FOUND") if int(image.item_id) > 7 else None)

    out = tmp_path / "out"
    with serving_in_thread(FakeServicer(stream=replaced)) as server:
        assert categorize(images, server, out) == 2
    assert len(rows(out)) == 7
    assert "7 images categorized, 13 not answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("file,category\n", "line 1 of"),
        ('{"file": "a", "artifact_id": "x"}\n[]\n', "line 2 of"),
        ('{"file": 1, "artifact_id": "x"}\n', "line 1 of"),
        ("\n", "line 1 of"),
    ],
)
def test_another_file_is_not_touched(
    server: str, images: Path, tmp_path: Path, content: str, sentence: str, capsys: Captured
) -> None:
    """A file that this command has not written is refused and left as it is."""
    out = tmp_path / "out"
    out.write_text(content)

    assert categorize(images, server, out) == 2
    assert out.read_text() == content
    assert sentence in capsys.readouterr().err


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    """A second one is refused, and the first goes on."""
    with Journal(tmp_path / "out"), pytest.raises(InvalidRequest, match="another process"), Journal(tmp_path / "out"):
        pass
    with Journal(tmp_path / "out"):
        pass


def test_no_place_to_write_is_told_before_anything_is_sent(
    server: str, servicer: FakeServicer, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    """A folder that is not there, a folder, a device."""
    for out in (tmp_path / "gone" / "out", tmp_path, Path(os.devnull)):
        assert categorize(images, server, out) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert servicer.received == []


def test_names_that_are_not_utf_8_survive(server: str, tmp_path: Path) -> None:
    """Old archives have them: such a file has a line, and its line is found again."""
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.dcm")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system allows UTF-8 only")

    assert [categorize(folder, server, out), categorize(folder, server, out)] == [0, 0]
    assert len(out.read_bytes().splitlines()) == 1


def test_out_is_for_images(capsys: Captured, tmp_path: Path) -> None:
    """--out has one line an image: no series, and no second place for lines."""
    for more in (["--jsonl"], ["--by", "series"]):
        assert cli.main(["categorize", ".", "--server", "x:1", "--out", str(tmp_path / "o"), *more]) == 2
        assert "leave out --" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def slow_server() -> FakeServicer:
    """Two hundredths of a second an image."""

    async def slowly(
        servicer: FakeServicer, call: int, received: AsyncIterator[Received], context: Any
    ) -> AsyncIterator[pb.CategorizeStreamResponse]:
        async for image in received:
            await asyncio.sleep(0.02)
            yield respond(image)

    return FakeServicer(stream=slowly)


def start(images: Path, server: str, out: Path) -> subprocess.Popen[bytes]:
    """The command as a process, which has written a few lines."""
    command = [
        sys.executable,
        "-m",
        "deepmcat_client",
        "categorize",
        str(images),
        "--server",
        server,
        "--out",
        str(out),
    ]
    # A shell has what it runs in the background ignore Ctrl-C, and so has every process that comes of it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    while not (out.exists() and out.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    """kill -9 in the middle, three times: in the end one line an image, in order, and little was sent twice."""
    images, out, servicer = tmp_path / "images", tmp_path / "out", slow_server()
    images.mkdir()
    for number in range(1, 151):
        (images / f"{number:03}.dcm").write_bytes(b"x" * number)
    with serving_in_thread(servicer) as server:
        for _ in range(3):
            process = start(images, server, out)
            process.kill()
            process.communicate()
            with out.open("ab") as file:
                file.write(b'{"file": "torn')  # as a kill in the middle of a line leaves it
        lines = out.read_bytes().count(b"\n")
        assert lines < 150
        assert categorize(images, server, out) == 0
    assert_all_answered(out, images)
    assert len(servicer.received) <= 150 + 3 * 64


@pytest.mark.slow
def test_an_interrupt_ends_with_what_was_answered_on_the_disk(tmp_path: Path, images: Path) -> None:
    """Ctrl-C: exit code 130, whole lines in the order of the files, counts, and no traceback."""
    out = tmp_path / "out"
    for number in range(100):
        (images / f"z{number:02}.dcm").write_bytes(b"x")
    with serving_in_thread(slow_server()) as server:
        process = start(images, server, out)
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=60)

    assert process.returncode == 130
    assert b"Traceback" not in notes
    assert f"{len(rows(out))} images categorized".encode() in notes
    assert [Path(row["file"]) for row in rows(out)] == sorted(images.iterdir())[: len(rows(out))]
