"""Reduced precision: what passes its gate, what may be asked for, and what an engine in it computes."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.core.encoders import SIZE, SPEC, images, written

from deepmcat_core.artifact import Draft, SelfTest
from deepmcat_core.encoder import Encoder, build_encoder
from deepmcat_core.engine import open_engine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.errors import ArtifactFormat, ArtifactSelfTest, ConfigError
from deepmcat_core.manifest import Manifest
from deepmcat_core.precision import PrecisionGate, choose_precision


def gate(device: str, precision: str, *, passed: bool = True) -> PrecisionGate:
    cosine = 0.9999 if passed else 0.5
    return PrecisionGate(
        device=device, precision=precision, images=512, min_cosine=cosine, category_agreement=1, passed=passed
    )


@pytest.fixture(name="trained")
def trained_fixture(draft: Draft, encoder: Encoder, onnx: bytes) -> Draft:
    """A draft with a real encoder and its ONNX engine, which passed in bfloat16 on a CPU."""
    weights = encoder.weights()
    embeddings = TorchEngine(encoder, size=SIZE).embed(draft.self_test.images)
    return dataclasses.replace(
        draft,
        manifest=dataclasses.replace(draft.manifest, encoder=SPEC, precision_gates=(gate("cpu", "bfloat16"),)),
        encoder=weights,
        self_test=SelfTest(images=draft.self_test.images, embeddings=embeddings),
        onnx=onnx,
    )


@pytest.mark.parametrize(
    ("cosine", "moved", "count", "passed", "why"),
    [
        (0.9991, 0, 512, True, ""),
        (0.9991, 1, 1000, True, ""),
        (0.9991, 1, 512, False, "0.20% of the images"),
        (0.9989, 0, 512, False, "0.99890"),
        (float("nan"), 0, 512, False, "cosine to float32 is nan"),
        (0.9999, 0, 99, False, "99 calibration images"),
    ],
)
def test_what_passes(cosine: float, moved: int, count: int, passed: bool, why: str) -> None:
    """Cosine .999 for every image and the same category for 99.9 % of at least a hundred, or the reason why not."""
    cosines = np.append(np.ones(count), cosine)

    made = PrecisionGate.of(
        device="cuda:1", precision="float16", cosines=cosines, same_category=np.arange(count) >= moved
    )

    assert (made.device, made.images, made.passed) == ("cuda", count, passed)
    assert passed or why in made.failure()


@pytest.mark.parametrize(
    ("asked", "device", "pays", "chosen"),
    [
        ("auto", "cpu", ["bfloat16"], "float32"),
        ("bfloat16", "cpu", [], "bfloat16"),
        ("float32", "cuda:0", ["bfloat16", "float16"], "float32"),
        ("auto", "cuda:0", ["bfloat16", "float16"], "float16"),
        ("auto", "cuda:0", ["bfloat16"], "float32"),
        ("auto", "cuda:0", [], "float32"),
        ("float16", "cuda:1", [], "float16"),
    ],
)
def test_what_is_chosen(asked: str, device: str, pays: list[str], chosen: str) -> None:
    """Auto stays in float32 on a CPU, and on CUDA takes what passed there and is faster on that very device."""
    gates = [gate("cpu", "bfloat16"), gate("cuda", "bfloat16", passed=False), gate("cuda", "float16")]

    assert choose_precision(asked, device, gates, pays) == chosen


@pytest.mark.parametrize(
    ("asked", "device", "sentence"),
    [
        ("int8", "cpu", "auto, float32, bfloat16, float16 are precisions"),
        ("float16", "cpu", "for CUDA, and the device is cpu: use auto or float32"),
        ("bfloat16", "cpu", "does not say how it does on cpu: use auto or float32, or train on a cpu"),
        ("bfloat16", "cuda:0", r"did not pass .* on cuda: its lowest cosine .* 0.50000, .*; use auto or float32"),
    ],
)
def test_what_is_refused(asked: str, device: str, sentence: str) -> None:
    """What did not pass, or was not measured on this kind of device, is refused with the way out."""
    with pytest.raises(ConfigError, match=sentence):
        choose_precision(asked, device, [gate("cuda", "bfloat16", passed=False)], ["bfloat16"])


def test_the_manifest_keeps_gates_and_does_without(draft: Draft) -> None:
    """Gates survive the way through JSON; a manifest made before there were any has none; what is no gate is damage."""
    manifest = dataclasses.replace(draft.manifest, precision_gates=(gate("cuda", "float16"),))
    data = json.loads(manifest.to_json())

    assert Manifest.from_json(manifest.to_json()) == manifest
    before = {key: value for key, value in data.items() if key != "precision_gates"}
    assert Manifest.from_json(json.dumps(before).encode()).precision_gates == ()
    later = data | {"precision_gates": [data["precision_gates"][0] | {"seconds": 3}]}
    assert Manifest.from_json(json.dumps(later).encode()) == manifest
    for broken in ([{}], {"cpu": 1}, 3, [None]):
        with pytest.raises(ArtifactFormat):
            Manifest.from_json(json.dumps(data | {"precision_gates": broken}).encode())


def test_a_reduced_engine_is_opened_where_it_passed(tmp_path: Path, trained: Draft) -> None:
    """On request torch runs in bfloat16: unit vectors near float32's and not the same; unasked, nothing changes."""
    artifact = written(tmp_path, trained)

    reduced = open_engine(artifact, device="cpu", precision="bfloat16")
    auto = open_engine(artifact, device="cpu")
    exact = open_engine(artifact, device="cpu", engine="torch")

    assert [(e.name, e.precision) for e in (reduced, auto, exact)] == [
        ("torch", "bfloat16"),
        ("onnx", "float32"),
        ("torch", "float32"),
    ]
    given, expected = reduced.embed(images(5)), exact.embed(images(5))
    assert given.dtype == np.float32
    assert 0.999 < np.einsum("bd,bd->b", given, expected).min() < 0.9999999
    np.testing.assert_allclose(np.linalg.norm(given, axis=1), 1, atol=1e-5)
    with pytest.raises(ConfigError, match="use torch or auto"):
        open_engine(artifact, device="cpu", engine="onnx", precision="bfloat16")


@pytest.mark.parametrize(("multiplies", "warnings"), [(True, 0), (False, 1)])
def test_a_precision_that_a_device_has_no_instructions_for_is_logged(
    tmp_path: Path,
    trained: Draft,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    multiplies: bool,
    warnings: int,
) -> None:
    """The gate was passed on a CPU with instructions for bfloat16; on another one it is served, with a warning."""
    artifact = written(tmp_path, trained)
    monkeypatch.setattr("deepmcat_core.engine_torch.multiplies_bfloat16", lambda: multiplies)

    with caplog.at_level(logging.WARNING, "deepmcat"):
        open_engine(artifact, device="cpu", engine="torch", precision="float32")
        assert open_engine(artifact, device="cpu", precision="bfloat16").precision == "bfloat16"

    assert [record.message for record in caplog.records] == ["no instructions for this precision"] * warnings


def test_a_reduced_engine_is_refused_where_it_did_not_pass(tmp_path: Path, trained: Draft) -> None:
    """A gate that was not passed keeps the engine from opening."""
    manifest = dataclasses.replace(trained.manifest, precision_gates=(gate("cpu", "bfloat16", passed=False),))
    artifact = written(tmp_path, dataclasses.replace(trained, manifest=manifest))

    with pytest.raises(ConfigError, match="did not pass"):
        open_engine(artifact, device="cpu", precision="bfloat16")


def test_the_self_test_guards_reduced_engines(tmp_path: Path, trained: Draft) -> None:
    """Rounding is allowed for, an engine that computes something else is not opened."""
    other = dataclasses.replace(trained.self_test, embeddings=trained.self_test.embeddings[::-1])
    artifact = written(tmp_path, dataclasses.replace(trained, self_test=other))

    with pytest.raises(ArtifactSelfTest):
        open_engine(artifact, device="cpu", precision="bfloat16")


def test_float32_weights_stay_as_they_are() -> None:
    """An engine in float32 changes no weight; one in bfloat16 keeps norms and the projection in float32."""
    exact, reduced = build_encoder(SPEC), build_encoder(SPEC)
    TorchEngine(exact, size=SIZE)
    TorchEngine(reduced, size=SIZE, precision="bfloat16")

    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    kinds = {type(m).__name__: p.dtype for m in reduced.backbone.modules() for p in m.parameters(recurse=False)}
    assert kinds == {"Conv2d": torch.bfloat16, "Linear": torch.bfloat16, "BatchNorm2d": torch.float32}
    assert {p.dtype for p in reduced.projection.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_on_cuda(precision: str) -> None:
    """On CUDA a reduced engine is near the CPU's float32."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    encoder, same = build_encoder(SPEC), build_encoder(SPEC)
    same.load_weights(encoder.weights())
    given = TorchEngine(same, "cuda:0", size=SIZE, precision=precision).embed(images(9))

    assert np.einsum("bd,bd->b", given, TorchEngine(encoder, size=SIZE).embed(images(9))).min() > 0.999
