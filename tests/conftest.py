"""Fixtures that more than one package's tests need."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact, Draft, SelfTest
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog, Category, new_id
from deepmcat_core.frame import FramePolicy
from deepmcat_core.manifest import EncoderSpec, Manifest
from deepmcat_core.precision import PrecisionGate
from deepmcat_core.preprocessing import Preprocessing
from deepmcat_core.tree import Merge, MergeTree

K, D, SIZE = 4, 16, 32


class RandomProjection:
    """An engine without a framework: a fixed random matrix over the pixels, normalised."""

    name = "random-projection"
    device = "cpu"
    precision = "float32"
    dim = D

    def __init__(self, size: int = SIZE) -> None:
        self.matrix = np.random.default_rng(7).normal(size=(size * size, D)).astype(np.float32)

    def embed(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        flat = images.reshape(len(images), -1).astype(np.float32) / 255 - 0.5
        embeddings = flat @ self.matrix
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return (embeddings / np.maximum(norms, 1e-12)).astype(np.float32)

    def warm(self, batches: object) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to close."""


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows of unit length, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def prototypes(size: int = SIZE) -> npt.NDArray[np.uint8]:
    """K clearly different images, (K, 1, size, size)."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, size=(K, 1, 4, 4), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 1, size // 4, size // 4), dtype=np.uint8))


@pytest.fixture(name="engine")
def engine_fixture() -> RandomProjection:
    return RandomProjection()


@pytest.fixture(name="draft")
def draft_fixture(engine: RandomProjection) -> Draft:
    """Everything of a tiny artifact: four clusters, two categories, 300 calibration scores, no good in bfloat16."""
    images = prototypes()
    centroids = engine.embed(images)
    rng = np.random.default_rng(0)
    tree = MergeTree(
        k=K,
        merges=(
            Merge(left=0, right=1, height=0.1),
            Merge(left=2, right=3, height=0.2),
            Merge(left=4, right=5, height=1),
        ),
        linkage="average",
    )
    clusters = np.repeat(np.arange(K), 75)
    distances = rng.uniform(0.05, 0.15, size=len(clusters)).astype(np.float32)
    calibration = Calibration.fit(
        tree=tree, fit_clusters=clusters, fit_distances=distances, clusters=clusters, distances=distances
    )
    catalog = Catalog(
        version=1,
        k=K,
        categories=(
            Category(id=new_id(), name="CT chest", clusters=(0, 1), fit_images=150),
            Category(id=new_id(), name="MR head", clusters=(2, 3), fit_images=150),
        ),
    )
    manifest = Manifest(
        created_at="2026-01-01T00:00:00Z",
        encoder=EncoderSpec(name="random-projection"),
        preprocessing=Preprocessing(size=SIZE),
        frames=FramePolicy(count=3),
        k=K,
        dim=D,
        training={"recipe": "test", "seed": 0},
        decoders=("pydicom 3",),
        precision_gates=(
            PrecisionGate(
                device="cpu",
                precision="bfloat16",
                images=300,
                min_cosine=0.9,
                category_agreement=0.5,
                passed=False,
            ),
        ),
    )
    return Draft(
        manifest=manifest,
        encoder={"matrix": engine.matrix},
        centroids=centroids,
        tree=tree,
        calibration=calibration,
        catalog=catalog,
        self_test=SelfTest(images=images, embeddings=centroids),
    )


@pytest.fixture(name="artifact_folder")
def artifact_folder_fixture(tmp_path: Path, draft: Draft) -> Path:
    """A tiny artifact on disk."""
    artifacts.write(tmp_path / "artifact", draft)
    return tmp_path / "artifact"


@pytest.fixture(name="artifact")
def artifact_fixture(artifact_folder: Path) -> Artifact:
    return Artifact.load(artifact_folder)


def onnx_projection(matrix: np.ndarray) -> bytes:
    """The tests' random projection as an ONNX engine: (B, 1, S, S) uint8 → (B, D) unit vectors."""
    pixels, dim = matrix.shape
    size = round(pixels**0.5)
    constants = {
        "shape": np.array([-1, pixels], np.int64),
        "scale": np.array(1 / 255, np.float32),
        "half": np.array(0.5, np.float32),
        "matrix": matrix,
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "matrix"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "projection",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 1, size, size])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(name="onnx_artifact")
def onnx_artifact_fixture(tmp_path: Path, draft: Draft) -> Path:
    """The tiny artifact with an ONNX engine, as a CPU server runs it."""
    folder = tmp_path / "artifact"
    artifacts.write(folder, dataclasses.replace(draft, onnx=onnx_projection(draft.encoder["matrix"])))
    return folder


@pytest.fixture(name="changed")
def changed_fixture(draft: Draft) -> Callable[..., Draft]:
    """The draft with some of its manifest changed."""
    return lambda **changes: dataclasses.replace(draft, manifest=dataclasses.replace(draft.manifest, **changes))


@pytest.fixture(name="data_dir")
def data_dir_fixture() -> Path:
    """The folder of image sets, or a skip that says what is missing."""
    folder = os.environ.get("DEEPMCAT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DEEPMCAT_DATA does not name a folder of image sets (docs/data.md)")
    return Path(folder)


class Canaries:
    """Texts and UIDs that are in files and may be nowhere else; each is one of its kind."""

    _TEXTS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
    _TIMES: ClassVar = {"DA": "17771231", "TM": "235958.777", "DT": "17771231235958.777"}
    _PATTERN = re.compile(r"Q\d{6}ZX|1\.3\.7531\.9\.\d+|17771231|235958\.777|7531\.9042")
    # What decides how pixels are read, and has to be what it says for the image to be one.
    _MEANT = frozenset(
        {"SpecificCharacterSet", "SOPClassUID", "PhotometricInterpretation", "PresentationLUTShape", "VOILUTFunction"}
    )

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def text(self) -> str:
        """One more text, short enough for any element."""
        return f"Q{next(self._numbers):06d}ZX"

    def uid(self) -> str:
        """One more UID."""
        return f"1.3.7531.9.{next(self._numbers)}"

    def found_in(self, said: str | bytes) -> set[str]:
        """The canaries that got out. Bytes are looked through as text, in one byte a letter and in two."""
        texts = (said,) if isinstance(said, str) else (said.decode("latin-1"), said.decode("utf-16", "replace"))
        return {found for text in texts for found in self._PATTERN.findall(text)}

    def fill(self, dataset: Dataset) -> None:
        """Into every text, date and UID that the standard knows below the pixels, private elements and sequences."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a canary is no defined term
            self._fill_flat(dataset)
            item = Dataset()
            self._fill_flat(item)
            for sequence in ("RequestAttributesSequence", "SharedFunctionalGroupsSequence", "ReferencedImageSequence"):
                outer = Dataset()
                outer.PatientName = self.text()
                outer.add_new(0x00400275, "SQ", [item])
                setattr(dataset, sequence, [outer])
            block = dataset.private_block(0x0011, self.text(), create=True)
            block.add_new(0x01, "LO", self.text())
            block.add_new(0x02, "UN", self.text().encode() + b" ")
            block.add_new(0x03, "SQ", [item])

    def _fill_flat(self, dataset: Dataset) -> None:
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            if not 0x0008_0000 <= tag < 0x5000_0000 or keyword in self._MEANT or tag in dataset:
                continue
            if vr in self._TEXTS:
                dataset.add_new(tag, vr, self.text())
            elif vr == "UI":
                dataset.add_new(tag, vr, self.uid())
            elif vr in self._TIMES:
                dataset.add_new(tag, vr, self._TIMES[vr])
            elif vr == "DS" and tag >> 16 == 0x0010:  # other numbers are the pixels'
                dataset.add_new(tag, vr, "7531.9042")


@pytest.fixture(name="canaries", scope="session")
def canaries_fixture() -> Canaries:
    return Canaries()
