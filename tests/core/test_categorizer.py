"""The whole path as a library."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorization, Categorizer
from deepmcat_core.engine import Engine
from deepmcat_core.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from deepmcat_core.frame import Limits, RawPlane


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def pages(planes: list[npt.NDArray[np.uint8]]) -> bytes:
    """A TIFF of several pages."""
    first, *rest = (Image.fromarray(plane) for plane in planes)
    content = io.BytesIO()
    first.save(content, "TIFF", save_all=True, append_images=rest)
    return content.getvalue()


@pytest.fixture(name="categorizer")
def categorizer_fixture(artifact: Artifact, engine: Engine) -> Categorizer:
    return Categorizer(artifact, engine)


def test_a_training_image_finds_its_cluster(categorizer: Categorizer, artifact: Artifact) -> None:
    """The image that a centroid was made of is assigned to that cluster, with its category and artifact named."""
    images = [png(plane[0]) for plane in artifact.self_test.images]

    answers = categorizer.categorize(images)

    for cluster, answer in enumerate(answers):
        assert isinstance(answer, Categorization)
        assert answer.assignment.cluster_id == cluster
        assert answer.assignment.category == ("CT chest" if cluster < 2 else "MR head")
        assert (answer.artifact_id, answer.catalog_version) == (artifact.artifact_id, 1)
        np.testing.assert_allclose(answer.embedding, artifact.centroids[cluster], atol=1e-5)


def test_a_bad_image_disturbs_no_other(categorizer: Categorizer, artifact: Artifact) -> None:
    """Each bad image gives its error in its place; the good ones get the answers they get alone."""
    good = [png(plane[0]) for plane in artifact.self_test.images[:2]]

    answers = categorizer.categorize([b"", good[0], b"what is this?", good[0][:60], good[1]])

    assert [type(a) for a in answers] == [CorruptImage, Categorization, UnsupportedImage, CorruptImage, Categorization]
    for alone, together in zip(categorizer.categorize(good), (answers[1], answers[4]), strict=True):
        assert isinstance(alone, Categorization)
        assert isinstance(together, Categorization)
        assert alone.assignment == together.assignment


def test_only_bad_images(categorizer: Categorizer) -> None:
    """Nothing to embed is no special case for the caller; neither is an empty list."""
    assert categorizer.categorize([]) == []
    assert [type(a) for a in categorizer.categorize([b"", b""])] == [CorruptImage, CorruptImage]


def test_frames_are_answered_one_by_one_and_together(categorizer: Categorizer, artifact: Artifact) -> None:
    """A multi-frame image has an assignment per frame used, and one for the whole that a frame of it explains."""
    one, two = artifact.self_test.images[0, 0], artifact.self_test.images[2, 0]

    (answer,) = categorizer.categorize([pages([one, one, two])])

    assert isinstance(answer, Categorization)
    assert answer.total_frames == 3
    assert [(f.index, f.assignment.cluster_id) for f in answer.frames] == [(0, 0), (1, 0), (2, 2)]
    assert answer.assignment.category == "CT chest"
    np.testing.assert_allclose(answer.embedding, artifact.centroids[0], atol=1e-5)


def test_frames_can_be_limited(categorizer: Categorizer, artifact: Artifact) -> None:
    """Asking for one frame gives the middle one."""
    (answer,) = categorizer.categorize([pages([plane[0] for plane in artifact.self_test.images[:3]])], frames=1)

    assert isinstance(answer, Categorization)
    assert [f.index for f in answer.frames] == [1]


def test_raw_planes_are_stored_values(categorizer: Categorizer, artifact: Artifact) -> None:
    """A raw plane is stretched like DICOM's stored values: another type or slope of the same plane changes nothing."""
    plane = artifact.self_test.images[1, 0]
    stored = [plane, plane.astype("<u2") * 16, (plane.astype("<i2") - 128) * 8, plane.astype("<f4") / 255]
    raws = [
        RawPlane(rows=32, columns=32, sample_type=values.dtype.name, data=values.tobytes())  # type: ignore[arg-type]
        for values in stored
    ]

    answers = categorizer.categorize(raws)

    for answer in answers:
        assert isinstance(answer, Categorization)
        assert answer.assignment.cluster_id == 1
        assert isinstance(answers[0], Categorization)
        assert answer.assignment.distance == pytest.approx(answers[0].assignment.distance, abs=1e-5)


def test_limits_are_checked(artifact: Artifact, engine: Engine) -> None:
    """An image over the caller's limit is refused, and the others are not."""
    categorizer = Categorizer(artifact, engine, Limits(max_side=32))
    small, large = np.zeros((32, 32), dtype=np.uint8), np.zeros((33, 33), dtype=np.uint8)

    answers = categorizer.categorize([png(small), png(large)])

    assert [type(a) for a in answers] == [Categorization, ImageTooLarge]


def test_a_new_catalog_is_used_at_once(categorizer: Categorizer, artifact: Artifact) -> None:
    """Renaming a category changes the answers' names and version, and not their ids."""
    image = [png(artifact.self_test.images[0, 0])]
    (before,) = categorizer.categorize(image)
    categories = artifact.catalog.categories
    renamed = type(categories[0])(id=categories[0].id, name="CT thorax", clusters=categories[0].clusters)

    categorizer.use_catalog(artifact.catalog.succeed((renamed, *categories[1:])))
    (after,) = categorizer.categorize(image)

    assert isinstance(before, Categorization)
    assert isinstance(after, Categorization)
    assert after.assignment.category == "CT thorax"
    assert after.catalog_version == 2
    assert after.assignment.category_id == before.assignment.category_id


def test_importing_the_core_imports_nothing_heavy() -> None:
    """A decoding worker that imports the core has neither torch nor faiss nor an engine in it."""
    code = (
        "import sys, deepmcat_core, deepmcat_core.planes;"
        "print([m for m in ('torch', 'faiss', 'onnxruntime', 'sklearn', 'pydantic') if m in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"
