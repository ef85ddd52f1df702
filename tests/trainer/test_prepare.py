"""Preparing: every image once, in order, whatever happens on the way."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.errors import ConfigError
from deepmcat_core.planes import ReadOptions, read_planes
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.commands.prepare import command
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.locations import WholeFile
from deepmcat_trainer.prepare import PrepareOptions, prepare
from deepmcat_trainer.reading import Reading
from deepmcat_trainer.readings import read_in_order
from deepmcat_trainer.report import Summary
from deepmcat_trainer.sources import SourceItem
from deepmcat_trainer.splits import Shares, Split, split_of

Make = Callable[..., PrepareOptions]
Write = Callable[..., Path]


Run = Callable[[PrepareOptions], Summary]


@pytest.fixture(name="run")
def run_fixture(pool: DecodePool) -> Run:
    """Prepares without a word, with workers that are there already."""
    return lambda options: prepare(options, console=Console(file=io.StringIO()), pool=pool)


def content(folder: Path) -> dict[str, object]:
    """Everything that a dataset holds, but for when it was made."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["dataset.json"] = {
        k: v for k, v in json.loads((folder / "dataset.json").read_bytes()).items() if k != "created_at"
    }
    return files


def manifest(folder: Path) -> list[dict[str, object]]:
    return pq.read_table(folder / "manifest.parquet").to_pylist()


@pytest.fixture(name="archive")
def archive_fixture(tmp_path: Path, png: Write, dicom: Write) -> Path:
    """Seven readable images (nine frames, one a duplicate), two failures."""
    root = tmp_path / "archive"
    for seed in range(4):
        png(root / f"ct/{seed}.png", seed)
    png(root / "mr/copy_of_0.png", 0)
    dicom(root / "mr/single.dcm", 10, PatientID="P1", BodyPartExamined="HEART")
    dicom(root / "mr/multi.dcm", 11, frames=7, PatientID="P1", PatientName="Secret^Name")
    (root / "mr/notes.txt").write_text("not an image")
    (root / "mr/empty.dcm").write_bytes(b"")
    return root


def test_everything_readable_becomes_rows(archive: Path, options: Make, run: Run) -> None:
    """Each used frame is a row with the pixels that the server would see; duplicates and failures are recorded."""
    given = options(archive)
    summary = run(given)
    dataset = Dataset.open(given.out)
    lines = manifest(given.out)

    assert (summary.info.images, summary.info.rows, summary.info.duplicates) == (7, 8, 1)
    assert sum(summary.info.failures.values()) + summary.info.not_images == 2
    assert dataset.images.shape == (8, 32, 32)
    paths = {line["id"]: line for line in pq.read_table(given.out / "sources.parquet").to_pylist()}
    for line in (line for line in lines if line["row"] is not None):
        source = paths[line["id"]]
        planes = read_planes(Path(source["path"]).read_bytes(), given.read)
        plane = planes.planes[planes.frame_indices.index(line["frame"])]
        np.testing.assert_array_equal(dataset.images[line["row"]], plane)
    assert sorted(line["frame"] for line in lines if paths[line["id"]]["path"].endswith("multi.dcm")) == [1, 3, 5]


def test_duplicates_name_what_was_kept(archive: Path, options: Make, run: Run) -> None:
    """An exact duplicate has no row, and points to the frame with its digest that has one."""
    given = options(archive)
    run(given)
    lines = {line["id"]: line for line in manifest(given.out)}
    (duplicate,) = (line for line in lines.values() if line["row"] is None)

    kept = lines[duplicate["duplicate_of"]]

    assert kept["row"] is not None
    assert kept["digest"] == duplicate["digest"]


def test_manifest_has_coded_terms_and_no_patient_text(archive: Path, options: Make, run: Run) -> None:
    """Defined terms are kept; names, numbers, paths and labels are in no file that may leave the machine."""
    given = options(archive, labels="folders")
    run(given)
    coded = Dataset.open(given.out).coded().to_pylist()

    assert [line["Modality"] for line in coded].count("MR") == 4
    assert [line["BodyPartExamined"] for line in coded].count("HEART") == 1
    for name in ("manifest.parquet", "dataset.json", "images.npy"):
        data = (given.out / name).read_bytes()
        assert not any(secret in data for secret in (b"Secret", b"P1", b"archive", b"single.dcm"))


def test_what_names_files_is_private(archive: Path, options: Make, run: Run) -> None:
    """Sources, report and key can be read by their owner only; nothing of the work is left beside the dataset."""
    given = options(archive, key=None)
    run(given)

    for name in ("sources.parquet", "report.jsonl", "hmac.key"):
        assert stat.S_IMODE((given.out / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in given.out.parent.iterdir()) == ["archive", "dataset", "test.key"]


def test_report_names_each_failure_and_its_reason(archive: Path, options: Make, run: Run) -> None:
    """The report has a line per file that gave no image, with one of our reason codes."""
    given = options(archive)
    run(given)
    lines = [json.loads(line) for line in (given.out / "report.jsonl").read_text().splitlines()]

    assert [Path(line["path"]).name for line in lines] == ["empty.dcm", "notes.txt"]
    assert {line["reason"] for line in lines} <= {"CORRUPT_IMAGE", "UNSUPPORTED_IMAGE", "NOT_AN_IMAGE"}


def test_workers_do_not_change_the_result(archive: Path, options: Make, tmp_path: Path) -> None:
    """One worker and three make the same dataset, byte for byte."""
    one, three = options(archive, out=tmp_path / "one"), options(archive, out=tmp_path / "three", workers=3)
    for given in (one, three):
        prepare(given, console=Console(file=io.StringIO()))

    assert content(one.out) == content(three.out)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archives_give_the_same_images_as_folders(
    archive: Path, options: Make, tmp_path: Path, kind: str, run: Run
) -> None:
    """Packing an archive changes neither pixels nor labels."""
    packed = tmp_path / f"packed.{kind}"
    files = sorted(path for path in archive.rglob("*") if path.is_file())
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            for path in files:
                target.write(path, path.relative_to(archive))
    else:
        with tarfile.open(packed, "w:gz" if kind == "tar.gz" else "w") as tar:
            for path in files:
                tar.add(path, path.relative_to(archive))
    folder, other = options(archive, labels="folders"), options(packed, labels="folders", out=tmp_path / "other")
    run(folder)
    run(other)

    np.testing.assert_array_equal(Dataset.open(folder.out).images, Dataset.open(other.out).images)
    assert Dataset.open(folder.out).labels() == Dataset.open(other.out).labels()


CHILD = """
import sys
from pathlib import Path
from deepmcat_core.planes import ReadOptions
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_trainer.prepare import PrepareOptions, prepare

if __name__ == "__main__":
    source, out, key = sys.argv[1:]
    prepare(PrepareOptions(
        sources=(source,), out=Path(out), key=Path(key), workers=1, commit_interval_s=0,
        read=ReadOptions(preprocessing=Preprocessing(size=32)),
    ))
"""


def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path, png: Write, options: Make, run: Run) -> None:
    """After kill -9 in the middle, the same command decodes the rest and makes what it would have made at once."""
    source = tmp_path / "archive"
    for seed in range(120):
        png(source / f"{seed % 60:03}_{seed}.png", seed % 100, side=200)
    given, script = options(source), tmp_path / "child.py"
    script.write_text(CHILD)
    images = given.out.parent / f".{given.out.name}.partial/dataset/images.npy"
    child = subprocess.Popen(
        [sys.executable, str(script), str(source), str(given.out), str(given.key)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    while not (images.exists() and images.stat().st_size > 20 * 32 * 32):
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()

    resumed = run(given)
    whole = options(source, out=tmp_path / "whole")
    run(whole)

    assert 0 < resumed.resumed < 120
    assert resumed.resumed + resumed.read == 120
    assert content(given.out) == content(whole.out)


def interrupted(given: PrepareOptions, tmp_path: Path, run: Run) -> None:
    """Leave behind what a run leaves that got as far as its labels."""
    labels = tmp_path / "useless.csv"
    labels.write_text("path,label\nnowhere.png,x\n")
    with pytest.raises(ConfigError, match=r"none of the 1 lines of .*useless\.csv"):
        run(
            PrepareOptions(
                sources=given.sources, out=given.out, key=given.key, workers=1, read=given.read, labels=str(labels)
            )
        )


def test_a_run_goes_on_with_the_same_options_only(archive: Path, options: Make, tmp_path: Path, run: Run) -> None:
    """What decides pixels and ids may not change on the way; labels and splits may, and nothing is decoded again."""
    given = options(archive)
    interrupted(given, tmp_path, run)

    with pytest.raises(ConfigError, match=r"begun with other options \(--size and --intensity\): give the same"):
        run(options(archive, read=ReadOptions(preprocessing=Preprocessing(size=64))))
    summary = run(options(archive, labels="folders", shares=Shares(fit=50, calibration=50, test=0)))

    assert (summary.read, summary.resumed) == (0, 9)
    assert summary.info.splits["test"] == 0


def test_one_run_at_a_time(archive: Path, options: Make, run: Run) -> None:
    """A second run on the same --out says so instead of spoiling the first."""
    from deepmcat_trainer.journal import Journal

    given = options(archive)
    (given.out.parent / ".dataset.partial").mkdir()
    with (
        Journal(given.out.parent / ".dataset.partial/journal.sqlite"),
        pytest.raises(ConfigError, match="another `deepmcat prepare` is at work"),
    ):
        run(given)


def test_a_damaged_journal_is_one_sentence(archive: Path, options: Make, run: Run) -> None:
    """What is left of a run may be damaged; the way out is named."""
    given = options(archive)
    (given.out.parent / ".dataset.partial").mkdir()
    (given.out.parent / ".dataset.partial/journal.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(ConfigError, match="is damaged: remove it to begin anew"):
        run(given)


@pytest.mark.parametrize("limit", [0, 150_000])
def test_a_full_disk_is_one_sentence(archive: Path, options: Make, limit: int, run: Run) -> None:
    """Where nothing more can be written, the run ends with a sentence and can go on later."""
    given = options(archive, read=ReadOptions(preprocessing=Preprocessing(size=256)))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(ConfigError, match="cannot write the dataset at"):
            run(given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

    assert run(given).info.rows == 8


def test_an_image_that_kills_its_worker_costs_nothing_but_itself(archive: Path, options: Make) -> None:
    """The other images of its batch are read, in order, and it has a reason code like any other."""
    items = [
        SourceItem(locator=str(i), relative=str(i), path="", member="", folder="", location=location)
        for i, location in enumerate(
            [
                WholeFile(str(archive / "ct/0.png")),
                SimpleNamespace(read=os._exit, held=0),
                WholeFile(str(archive / "ct/1.png")),
            ]
        )
    ]
    with DecodePool(1) as pool:
        found = list(read_in_order(pool, items, options().read, workers=1))

    assert [item.locator for item, _ in found] == ["0", "1", "2"]
    assert [isinstance(reading, Reading) for _, reading in found] == [True, False, True]
    assert found[1][1] == "CORRUPT_IMAGE"


def test_labels_of_a_file(archive: Path, options: Make, tmp_path: Path, run: Run) -> None:
    """A path may be relative or absolute; images without a line have no label; lines without an image are counted."""
    table = tmp_path / "labels.csv"
    lines = [
        ("ct/0.png", "head", ""),
        (archive / "ct/1.png", "chest", ""),
        ("./mr/single.dcm", "heart", ""),
        ("no", "x", ""),
    ]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *lines])
    given = options(archive, labels=str(table))
    summary = run(given)
    labels = Dataset.open(given.out).labels()

    assert sorted(labels) == [""] * 5 + ["chest", "head", "heart"]
    assert (summary.labelled_rows, summary.unmatched_labels) == (3, 1)


def test_labels_stay_out_of_what_training_reads(archive: Path, options: Make, run: Run) -> None:
    """Without labels.parquet a dataset is as good as before for everything but `labels`."""
    given = options(archive, labels="folders", shares=Shares(fit=90, calibration=10, test=0))
    bare = options(archive, out=given.out.with_name("bare"))
    run(given)
    run(bare)

    assert (given.out / "manifest.parquet").read_bytes() == (bare.out / "manifest.parquet").read_bytes()
    assert not (bare.out / "labels.parquet").exists()
    with pytest.raises(ConfigError, match="has no labels"):
        Dataset.open(bare.out).labels()


def test_patients_stay_together(tmp_path: Path, dicom: Write, png: Write, options: Make, run: Run) -> None:
    """All rows of a patient are in one split: the header's patient, or the labels file's where there is none."""
    source, table = tmp_path / "archive", tmp_path / "labels.csv"
    lines = [("path", "label", "patient")]
    for i in range(24):
        dicom(source / f"{i}.dcm", i, frames=2, PatientID=f"P{i % 6}")
        png(source / f"{i}.png", 1000 + i)
        lines.append((f"{i}.png", "x", f"Q{i % 6}"))
        lines.append((f"{i}.dcm", "x", "somebody else"))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    given = options(source, labels=str(table), shares=Shares(fit=50, calibration=25, test=25))
    summary = run(given)
    splits: dict[object, set[object]] = {}
    for line in manifest(given.out):
        splits.setdefault(line["patient"], set()).add(line["split"])

    assert summary.info.patients == 12 == len(splits)
    assert all(len(of_patient) == 1 for of_patient in splits.values())
    assert given.key
    for patient, (split,) in splits.items():
        assert split == split_of(given.key.read_bytes(), str(patient), Shares(fit=50, calibration=25, test=25))


def test_frames_of_an_image_stay_together(tmp_path: Path, dicom: Write, options: Make, run: Run) -> None:
    """Without a patient, an image is what is not divided."""
    for i in range(20):
        dicom(tmp_path / f"archive/{i}.dcm", i, frames=3)
    given = options(tmp_path / "archive", shares=Shares(fit=50, calibration=25, test=25))
    run(given)
    paths = pq.read_table(given.out / "sources.parquet").column("path").to_pylist()
    splits = {(path, line["split"]) for path, line in zip(paths, manifest(given.out), strict=True)}

    assert len(splits) == 20
    assert {split for _, split in splits} == set(Split)


def test_descriptions_need_five_patients(tmp_path: Path, dicom: Write, options: Make, run: Run) -> None:
    """Free text is kept where five patients share it, and nowhere else; counting it by images is not enough."""
    for i in range(5):
        dicom(tmp_path / f"archive/a{i}.dcm", i, PatientID=f"P{i}", SeriesDescription=f"T2  Axial{' ' * i}")
        dicom(tmp_path / f"archive/b{i}.dcm", 10 + i, PatientID=f"P{i % 4}", SeriesDescription="for Mr Smith")
        dicom(
            tmp_path / f"archive/c{i}.dcm", 20 + i, PatientID=f"P{i}", SeriesDescription=f"S{i}", ProtocolName="Heart"
        )
        dicom(tmp_path / f"archive/d{i}.dcm", 30 + i, SeriesDescription="nobody knows whose")
    given = options(tmp_path / "archive")
    run(given)

    descriptions = Dataset.open(given.out).column("description").to_pylist()

    assert descriptions == ["t2 axial"] * 5 + [None] * 5 + ["heart"] * 5 + [None] * 5
    assert b"smith" not in (given.out / "manifest.parquet").read_bytes()


def test_ids_come_from_the_key(archive: Path, options: Make, tmp_path: Path, run: Run) -> None:
    """The same key gives the same ids, and another key others; a key of its own is made where none is given."""
    first, other = (
        options(archive, out=tmp_path / "first", key=None),
        options(archive, out=tmp_path / "other", key=None),
    )
    run(first)
    again = options(archive, out=tmp_path / "again", key=first.out / "hmac.key")
    run(again)
    run(other)
    ids = [{line["id"] for line in manifest(given.out)} for given in (first, again, other)]

    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]
    assert not (again.out / "hmac.key").exists()


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (lambda root: None, "there is nothing at"),
        (lambda root: root.mkdir(), "there is no file in .* SOURCE is a folder, a tar or zip archive, an @list"),
        (lambda root: (root.mkdir(), (root / "notes.md").write_text("x" * 200)), "none of the 1 files of"),
    ],
)
def test_nothing_to_prepare(
    tmp_path: Path, options: Make, setup: Callable[[Path], object], message: str, run: Run
) -> None:
    """A wrong path, an empty folder, nothing decodable: one sentence, and nothing is left behind."""
    setup(tmp_path / "archive")

    with pytest.raises(ConfigError, match=message):
        run(options(tmp_path / "archive"))
    assert not [path for path in tmp_path.iterdir() if "dataset" in path.name]


def test_a_damaged_archive_is_no_wrong_format(tmp_path: Path, options: Make, run: Run) -> None:
    """Where archives gave nothing because they are damaged, that is the sentence, and what to do about it."""
    (tmp_path / "bad.tar").write_bytes(b"this is no tar" * 100)

    with pytest.raises(ConfigError, match=r"bad\.tar: a damaged archive \(CORRUPT_ARCHIVE 1\); copy or pack") as caught:
        run(options(tmp_path / "bad.tar"))
    assert "DICOM" not in str(caught.value)


def test_wrong_paths_of_a_list_are_told_as_such(tmp_path: Path, options: Make, run: Run) -> None:
    """A list whose paths lead nowhere: what its paths are relative to."""
    (tmp_path / "list.txt").write_text("nowhere/1.dcm\nnowhere/2.dcm\n")

    with pytest.raises(
        ConfigError, match=r"2 files that are missing.*\(UNREADABLE 2\).*relative to the list"
    ) as caught:
        run(options(tmp_path / "list.txt"))
    assert "DICOM" not in str(caught.value)


def test_mixed_reasons_have_all_their_ways_out(tmp_path: Path, options: Make, run: Run) -> None:
    """A damaged archive beside a text: the formats that are read, and what to do about the archive."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/bad.zip").write_bytes(b"this is no zip" * 100)
    (tmp_path / "archive/notes.md").write_text("x" * 200)

    with pytest.raises(ConfigError, match=r"none of the 2 files of .*pack damaged archives anew.*DICOM, PNG"):
        run(options(tmp_path / "archive"))


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs a folder in which nobody can make another")
def test_a_place_that_cannot_be_written_is_told_at_once(archive: Path, options: Make, run: Run) -> None:
    """Root may write anywhere by its permissions, and still not there; no folder can take a mounted disk's place."""
    with pytest.raises(ConfigError, match=r"cannot write to /proc: .*; choose another --out"):
        run(options(archive, out=Path("/proc/z")))
    with pytest.raises(ConfigError, match=r"/proc is where a disk is mounted.* choose --out /proc/dataset"):
        run(options(archive, out=Path("/proc")))


def test_a_name_that_is_taken_meanwhile_costs_no_decoding(
    archive: Path, options: Make, run: Run, pool: DecodePool
) -> None:
    """The complete dataset waits for its name: the same command ends the run without reading anything again."""
    given = options(archive)

    class Taking(io.StringIO):
        def write(self, text: str) -> int:
            (given.out / "mine").mkdir(parents=True, exist_ok=True)
            return super().write(text)

    with pytest.raises(ConfigError, match="the dataset is complete, but cannot be given its name"):
        prepare(given, console=Console(file=Taking()), pool=pool)
    (given.out / "mine").rmdir()

    assert (run(given).read, len(Dataset.open(given.out))) == (0, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na,b\n", "lacks the columns"),
        ("", "lacks the columns"),
        ("path,label\na,x\n./a,y\n", "names a path twice, again in entry 2"),
        ("path,label\n\xff\n", "is not a CSV file in UTF-8"),
    ],
)
def test_wrong_labels_are_told_before_decoding(
    archive: Path, options: Make, tmp_path: Path, text: str, message: str, run: Run
) -> None:
    """A labels file that cannot be used is one sentence, and other options can be given afterwards."""
    (tmp_path / "labels.csv").write_text(text, encoding="latin-1")

    with pytest.raises(ConfigError, match=message):
        run(options(archive, labels=str(tmp_path / "labels.csv")))
    run(options(archive, read=ReadOptions(preprocessing=Preprocessing(size=16))))


def test_a_dataset_is_never_overwritten(archive: Path, options: Make, tmp_path: Path, run: Run) -> None:
    """An --out that is taken is refused, be it a dataset or something else."""
    run(options(archive))
    (tmp_path / "other").write_text("mine")

    with pytest.raises(ConfigError, match="there is a dataset at"):
        run(options(archive))
    with pytest.raises(ConfigError, match="is not an empty folder"):
        run(options(archive, out=tmp_path / "other"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"intensity": "windo"}, "--intensity is 'windo'. Did you mean 'window'? Known: percentile, window."),
        ({"workers": 0}, "--workers is 0; it takes 1 or more"),
        ({"frames": 1000}, "--frames is 1000; 1 to 64 is allowed"),
        ({"split": "60/10"}, "--split is '60/10'; it takes FIT/CALIBRATION/TEST in percent, such as 60/10/30"),
    ],
)
def test_wrong_options_are_sentences(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    """What was given, what is allowed, and the near word, before anything is read."""
    with pytest.raises(ConfigError) as caught:
        command([str(tmp_path)], tmp_path / "dataset", **arguments)

    assert str(caught.value) == sentence
    assert list(tmp_path.iterdir()) == []


def test_keys_are_checked(archive: Path, options: Make, tmp_path: Path, run: Run) -> None:
    """A key that is missing or too short to be one is refused."""
    (tmp_path / "short.key").write_bytes(b"short")

    with pytest.raises(ConfigError, match="has 5 bytes"):
        run(options(archive, key=tmp_path / "short.key"))
    with pytest.raises(ConfigError, match="cannot read the key file"):
        run(options(archive, key=tmp_path / "missing.key"))


def test_summary_tells_what_happened(archive: Path, options: Make, run: Run) -> None:
    """The summary counts frames, images, duplicates, failures by reason and splits, and warns of an empty split."""
    text = "\n".join(run(options(archive, shares=Shares(fit=98, calibration=1, test=1))).lines())

    assert "9 frames of 7 images: 8 kept, 1 duplicates left out" in text
    assert "files, failed        2 (CORRUPT_IMAGE 1, UNSUPPORTED_IMAGE 1)" in text
    assert "report.jsonl" in text
    assert "warning: the split calibration and test is empty" in text


@pytest.mark.data
def test_hostile_files_do_not_stop_a_run(data_dir: Path, options: Make, tmp_path: Path, run: Run) -> None:
    """Bombs, lies and nonsense all end up as rows or as reason codes."""
    given = options(data_dir / "hostile", workers=2)
    summary = run(given)
    files = sum(path.is_file() and not path.name.startswith(".") for path in (data_dir / "hostile").rglob("*"))

    assert summary.info.images + summary.info.not_images + sum(summary.info.failures.values()) == files
