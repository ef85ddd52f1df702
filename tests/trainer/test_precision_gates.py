"""What a reduced precision is measured at: cosines and categories beside float32."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from deepmcat_core.artifact import Draft, SelfTest
from deepmcat_core.assigner import Assigner
from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import build_encoder
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.manifest import EncoderSpec
from deepmcat_core.precision import PrecisionGate
from deepmcat_trainer.precision_gates import measured, precision_gate

Floats = npt.NDArray[np.float32]

COUNT = 100


class Turned:
    """An engine whose embeddings are those it is given, by the number of images; the self-test has four."""

    name, device, precision = "turned", "cpu", "bfloat16"

    def __init__(self, *embeddings: Floats) -> None:
        self.answers = {len(each): each for each in embeddings}
        self.dim = embeddings[0].shape[1]

    def embed(self, images: npt.NDArray[np.uint8]) -> Floats:
        return self.answers[len(images)]

    def warm(self, batches: object) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture(name="assigner")
def assigner_fixture(draft: Draft) -> Assigner:
    return Assigner(Centroids(draft.centroids), draft.calibration, draft.catalog)


@pytest.fixture(name="images")
def images_fixture(draft: Draft) -> npt.NDArray[np.uint8]:
    return np.repeat(draft.self_test.images, COUNT // 4, axis=0)


def gate(assigner: Assigner, images: npt.NDArray[np.uint8], self_test: SelfTest, *given: Floats) -> PrecisionGate:
    expected = np.repeat(self_test.embeddings, COUNT // 4, axis=0)
    return precision_gate(Turned(*given), images, expected, assigner, self_test)


def towards(embeddings: Floats, other: Floats, share: float) -> Floats:
    """Embeddings turned a little towards others."""
    turned = (1 - share) * embeddings + share * other
    return np.asarray(turned / np.linalg.norm(turned, axis=1, keepdims=True), dtype=np.float32)


def test_equal_embeddings_pass(assigner: Assigner, images: npt.NDArray[np.uint8], draft: Draft) -> None:
    """An engine that loses nothing has cosine one and every category."""
    exact = draft.self_test.embeddings

    made = gate(assigner, images, draft.self_test, np.repeat(exact, COUNT // 4, axis=0), exact)

    assert (made.device, made.precision, made.images) == ("cpu", "bfloat16", COUNT)
    assert made.min_cosine == pytest.approx(1)
    assert (made.category_agreement, made.passed) == (1, True)


def test_one_image_in_another_category_is_seen(assigner: Assigner, images: npt.NDArray[np.uint8], draft: Draft) -> None:
    """An image that comes nearer to another category counts, and its cosine is the lowest."""
    exact = draft.self_test.embeddings
    given = np.repeat(exact, COUNT // 4, axis=0)
    given[7] = towards(given[7:8], given[50:51], 0.6)[0]

    made = gate(assigner, images, draft.self_test, given, exact)

    assert made.category_agreement == pytest.approx(1 - 1 / COUNT)
    assert made.min_cosine == pytest.approx(float(given[7] @ exact[0]), abs=1e-6)
    assert not made.passed


def test_the_verdict_does_not_count(assigner: Assigner, images: npt.NDArray[np.uint8], draft: Draft) -> None:
    """An image that becomes an outlier and stays nearest to its category has the same category."""
    exact = draft.self_test.embeddings
    given = np.repeat(exact, COUNT // 4, axis=0)
    given[7] = towards(given[7:8], given[50:51], 0.4)[0]

    made = gate(assigner, images, draft.self_test, given, exact)

    assert assigner.assign(given[7:8])[0].outlier
    assert made.category_agreement == 1


def test_the_self_tests_images_count(assigner: Assigner, images: npt.NDArray[np.uint8], draft: Draft) -> None:
    """A precision in which the self-test is far off does not pass: the artifact could not be opened in it."""
    exact = draft.self_test.embeddings

    made = gate(assigner, images, draft.self_test, np.repeat(exact, COUNT // 4, axis=0), exact[::-1].copy())

    assert made.category_agreement == 1
    assert not made.passed


def test_an_encoder_is_left_as_it_is(assigner: Assigner, images: npt.NDArray[np.uint8], draft: Draft) -> None:
    """Measuring runs a copy: the encoder's weights keep their precision, and the gate is that of a bfloat16 engine."""
    options = {"projection": {"kind": "linear", "in": 256, "out": 16}}
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel", options=options))
    exact = TorchEngine(encoder, size=32)
    before = {name: value.dtype for name, value in encoder.state_dict().items()}
    self_test = dataclasses.replace(draft.self_test, embeddings=exact.embed(draft.self_test.images))

    made = measured(
        encoder,
        "cpu",
        "bfloat16",
        images=images,
        expected=exact.embed(images),
        assigner=assigner,
        self_test=self_test,
    )

    assert {name: value.dtype for name, value in encoder.state_dict().items()} == before
    assert (made.device, made.precision, made.images) == ("cpu", "bfloat16", COUNT)
    assert 0.99 < made.min_cosine < 1
