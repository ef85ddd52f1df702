"""From DICOM files to categories through every door: the same image, the same answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

import deepmcat_core
from deepmcat_client import AsyncClient, Client
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorization
from deepmcat_core.centroids import Centroids
from deepmcat_core.engine import open_engine
from deepmcat_trainer.dataset import Dataset

CANARY = "ZEBRA"  # in every name and text of the files: it may appear in no answer, log, metric or artifact


def deepmcat(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepmcat_client", *map(str, arguments)], capture_output=True, text=True, timeout=240
    )


def write(path: Path, plane: npt.NDArray[np.int16], kind: str, number: int, canaries: Any = None) -> None:
    """A CT or MR image with a patient, texts and UIDs that must stay in the file; canaries: in all else, too."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if kind == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = generate_uid()
    data.PatientName, data.PatientID, data.AccessionNumber = f"{CANARY}^NAME", f"{CANARY}ID{number}", f"{CANARY}ACC"
    data.StationName, data.InstitutionName = f"{CANARY}STATION", f"{CANARY} HOSPITAL"
    data.SeriesDescription = f"{CANARY} {number}"
    data.Modality, data.BodyPartExamined = kind, "CHEST" if kind == "CT" else "HEAD"
    data.Rows, data.Columns = plane.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.PixelData = plane.astype("<i2").tobytes()
    if canaries is not None:
        canaries.fill(data)
        data.preamble = canaries.text().encode().ljust(128, b"\0")
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def archive(folder: Path, canaries: Any) -> list[Path]:
    """Sixty images of two kinds: bright discs, and stripes; every twentieth is full of canaries."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:64, 0:64]
    folder.mkdir()
    for number in range(60):
        kind = "CT" if number % 2 else "MR"
        centre = rng.uniform(24, 40, size=2)
        disc = 800 * (np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(12, 20))
        stripes = 400 + 400 * np.sin(columns / rng.uniform(2, 3) + rng.uniform(0, 6))
        plane = (disc if kind == "CT" else stripes) + rng.normal(0, 40, size=(64, 64))
        write(folder / f"{CANARY}{number:03d}.dcm", plane, kind, number, None if number % 20 else canaries)
    return sorted(folder.iterdir())


@dataclass(frozen=True, kw_only=True)
class World:
    """What the tests below look at."""

    files: list[Path]
    dataset: Path
    artifact: Path
    listen: str
    admin: str
    server: subprocess.Popen[str]
    log: Path
    outputs: str


@pytest.fixture(name="world", scope="module")
def world_fixture(tmp_path_factory: pytest.TempPathFactory, canaries: Any) -> Iterator[World]:
    """Sixty DICOM files prepared, trained on, and served by a process of its own."""
    folder = tmp_path_factory.mktemp("world")
    files = archive(folder / "archive", canaries)
    damaged = folder / "damaged" / f"{CANARY}.dcm"
    damaged.parent.mkdir()
    damaged.write_bytes(files[0].read_bytes()[:-100])
    prepared = deepmcat("prepare", folder / "archive", damaged.parent, "--out", folder / "dataset", "--workers", "1")
    assert prepared.returncode == 0, prepared.stderr
    trained = deepmcat("train", folder / "dataset", "--out", folder / "artifact", "--recipe", "frozen")
    assert trained.returncode == 0, trained.stderr
    log = folder / "server.log"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "deepmcat_client", "serve", folder / "artifact"),
                *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file", folder / "ready.json"),
                *("--set", "decode_workers=1", "--set", "drain_s=0"),
            ],
            stderr=stderr,
            text=True,
        )
    try:
        ready = wait_for(folder / "ready.json", server)
        yield World(
            files=files,
            dataset=folder / "dataset",
            artifact=folder / "artifact",
            listen=ready["listen"],
            admin=ready["admin"],
            server=server,
            log=log,
            outputs=prepared.stdout + prepared.stderr + trained.stdout + trained.stderr,
        )
    finally:
        server.kill()
        server.wait()


def wait_for(path: Path, server: subprocess.Popen[str]) -> dict[str, str]:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert server.poll() is None, "the server ended before it was ready"
        assert time.monotonic() < deadline, "the server was not ready in a minute"
        time.sleep(0.05)
    ready: dict[str, str] = json.loads(path.read_text())
    return ready


def trainer_clusters(world: World) -> dict[Path, int]:
    """The nearest cluster of each file as the trainer sees it: from the prepared pixels."""
    dataset, artifact = Dataset.open(world.dataset), Artifact.load(world.artifact)
    engine = open_engine(artifact, device="cpu")
    clusters, _ = Centroids(artifact.centroids).nearest(engine.embed(np.asarray(dataset.images)[:, None]), 1)
    rows = {r["id"]: r["row"] for r in parquet.read_table(world.dataset / "manifest.parquet").to_pylist()}
    sources = parquet.read_table(world.dataset / "sources.parquet").to_pylist()
    return {Path(s["path"]): int(clusters[rows[s["id"]], 0]) for s in sources}


def test_every_door_gives_the_same_cluster(world: World) -> None:
    """Trainer, library, unary call, stream, asyncio client and command line agree on cluster and category."""
    by_trainer = trainer_clusters(world)
    contents = [path.read_bytes() for path in world.files]
    by_library = [a for a in deepmcat_core.load(world.artifact).categorize(contents) if isinstance(a, Categorization)]
    with Client(world.listen) as client:
        by_call = client.categorize(world.files[0])
        by_stream = [answer for _, answer in client.categorize_stream(enumerate(world.files))]

    async def one() -> object:
        async with AsyncClient(world.listen) as client:
            return await client.categorize(contents[0])

    by_command = [json.loads(line) for line in deepmcat(
        "categorize", world.files[0].parent, "--server", world.listen, "--jsonl"
    ).stdout.splitlines()]  # fmt: skip

    expected = [by_trainer[path] for path in world.files]
    assert [a.assignment.cluster_id for a in by_library] == expected
    assert [a.assignment.cluster_id for a in by_stream] == expected  # type: ignore[union-attr]
    assert [line["assignment"]["cluster_id"] for line in by_command] == expected
    assert by_stream[0] == by_call == asyncio.run(one())
    assert [a.assignment.category_id for a in by_library] == [a.assignment.category_id for a in by_stream]  # type: ignore[union-attr]


def test_two_kinds_are_two_kinds(world: World) -> None:
    """Discs and stripes share no cluster."""
    clusters = trainer_clusters(world)
    kinds = [{clusters[path] for path in world.files[start::2]} for start in (0, 1)]

    assert kinds[0].isdisjoint(kinds[1])


def kept(folder: Path) -> dict[str, str]:
    """What is in the files of a folder, by name, tables unpacked; names included."""
    texts = {"names": " ".join(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
            texts[path.name] = f"{table.schema} {table.to_pylist()}"
        elif path.is_file():
            texts[path.name] = path.read_bytes().decode("latin-1")
    return texts


def test_no_patient_text_gets_out(world: World, canaries: Any) -> None:
    """Names, texts and UIDs of the files are in no answer, log, metric, trace of the command line, or artifact.

    Nor in the dataset, but for paths, in the two files that say where images are and which could not be read.
    """
    from urllib.request import urlopen

    uids = [str(pydicom.dcmread(world.files[0]).SOPInstanceUID), str(pydicom.dcmread(world.files[1]).SeriesInstanceUID)]
    with Client(world.listen) as client:
        answers = repr(list(client.categorize_stream((n, path) for n, path in enumerate(world.files[:4]))))
        described = repr(client.get_artifact()) + repr(client.list_categories())
    dataset = kept(world.dataset)
    paths = {name: dataset.pop(name) for name in ("sources.parquet", "report.jsonl")}
    said = {
        "answers": answers,
        "description": described,
        "metrics": urlopen(f"http://{world.admin}/metrics").read().decode(),
        "log": world.log.read_text(),
        "terminal": world.outputs,
        **{f"artifact: {name}": text for name, text in kept(world.artifact).items()},
        **{f"dataset: {name}": text for name, text in dataset.items()},
    }

    assert {"dataset: manifest.parquet", "artifact: manifest.json"} <= said.keys()
    for name, text in paths.items():
        assert CANARY in text, name
        assert canaries.found_in(text) == set(), name
    assert len(canaries.found_in(world.files[0].read_bytes())) > 2000
    for name, text in said.items():
        assert text, name
        assert CANARY not in text, name
        assert not any(uid in text for uid in uids), name
        assert canaries.found_in(text) == set(), name


def test_the_server_ends_politely(world: World) -> None:
    """SIGTERM ends the server with exit code 0; its log is JSON to the last line. Runs last: it ends the world."""
    os.kill(world.server.pid, signal.SIGTERM)

    assert world.server.wait(timeout=30) == 0
    events = [json.loads(line)["event"] for line in world.log.read_text().splitlines()]
    assert events[-1] == "stopped"
