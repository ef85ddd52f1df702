"""`categorize --artifact`: the library's answers in the client's types."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepmcat_client import Categorization, Options, RawPlane
from deepmcat_client.errors import CorruptImage, ImageError, ImageTooLarge, UnreadableFile
from deepmcat_client.local import LocalCategorizer, read_artifact
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.engine import Engine


def png(seed: int) -> bytes:
    """A small grey image."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(40, 40), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(name="local")
def local_fixture(artifact_folder: Path, engine: Engine) -> LocalCategorizer:
    return LocalCategorizer(
        artifact_folder, max_image_bytes=10_000, open_artifact=lambda path: Categorizer(Artifact.load(path), engine)
    )


def test_answers_are_the_librarys_in_order(local: LocalCategorizer, artifact: Artifact, engine: Engine) -> None:
    """More images than one batch, bad ones among them: each has its own answer in its place."""
    images: list[tuple[int, bytes]] = [(n, png(n)) for n in range(40)]
    images[7] = (7, b"no image")
    expected = Categorizer(artifact, engine).categorize([content for _, content in images])

    with local as opened:
        answers = list(opened.categorize_stream(images))

    assert [key for key, _ in answers] == list(range(40))
    assert isinstance(answers[7][1], ImageError)
    for (_, ours), theirs in zip(answers, expected, strict=True):
        if isinstance(ours, Categorization):
            assert not isinstance(theirs, Exception)
            assert (ours.assignment.cluster_id, ours.assignment.distance, ours.assignment.p_value) == (
                theirs.assignment.cluster_id, theirs.assignment.distance, theirs.assignment.p_value,
            )  # fmt: skip
            assert ours.frames[0].frame_number == 1
            assert len(ours.assignment.candidates) == len(theirs.assignment.candidates)


def test_an_error_keeps_its_reason(local: LocalCategorizer, artifact: Artifact, engine: Engine) -> None:
    """The library's reason chooses the client's class."""
    (expected,) = Categorizer(artifact, engine).categorize([b"no image"])

    with local as opened:
        ((_, answer),) = opened.categorize_stream([(1, b"no image")])

    assert isinstance(expected, Exception)
    assert isinstance(answer, ImageError)
    assert (answer.reason, str(answer)) == (expected.reason, str(expected))


def test_files_that_cannot_be_read_are_answers(local: LocalCategorizer, tmp_path: Path) -> None:
    """As with a server: an unreadable or too large file has an error and the rest goes on."""
    (tmp_path / "large").write_bytes(b"x" * 10_001)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "good").write_bytes(png(1))

    with local as opened:
        answers = opened.categorize_stream((n, tmp_path / n) for n in ("gone", "large", "empty", "good"))
        types = [type(answer) for _, answer in answers]
    assert types == [UnreadableFile, ImageTooLarge, CorruptImage, Categorization]


def test_a_raw_plane_and_options(local: LocalCategorizer) -> None:
    """Planes of pixels, candidates and embeddings as with a server."""
    plane = RawPlane(rows=32, columns=32, sample_type="uint8", data=bytes(range(256)) * 4)

    with local as opened:
        ((_, answer),) = opened.categorize_stream([(1, plane)], Options(top_k=1, want_embedding=True))

    assert isinstance(answer, Categorization)
    assert len(answer.assignment.candidates) == 1
    assert answer.embedding is not None
    assert sum(x * x for x in answer.embedding.floats()) == pytest.approx(1)


def test_an_artifact_describes_itself_without_an_engine(artifact_folder: Path, artifact: Artifact) -> None:
    """Facts and catalog come from the verified files."""
    info, catalog = read_artifact(artifact_folder)

    assert info.artifact.artifact_id == catalog.artifact_id == artifact.artifact_id
    assert info.artifact.calibration.note == artifact.calibration.note()
    assert [c.category_id for c in catalog.categories] == [c.id for c in artifact.catalog.categories]
