"""The encoder as an ONNX file, and the gate that decides whether it may stand in for the reference.

Encoder ─export_onnx─► bytes ─OnnxEngine─► candidate ─equality_gate─► Gate: passed, or the artifact goes without
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepmcat_core.centroids import Centroids
from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import Engine, Floats, Images
from deepmcat_core.engine_onnx import INPUT, OUTPUT
from deepmcat_core.errors import DeepmcatError, MissingExtra

OPSET = 20
STANDARD_DOMAINS = ("", "ai.onnx")

MIN_COSINE = 0.99999
MARGIN = 1e-4


class NotExportable(DeepmcatError):
    """The encoder has something that ONNX's standard operators do not express; torch still runs it."""

    reason = "NOT_EXPORTABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How equal a candidate engine is to the reference.

    images: how many it was measured on. min_cosine: the lowest between two embeddings of one image.
    cluster_agreement_beyond_margin: the share of images with the same nearest cluster, among those whose two nearest
    clusters differ by more than MARGIN in distance for the reference; 1 where there are none.
    """

    images: int
    min_cosine: float
    cluster_agreement_beyond_margin: float
    passed: bool

    def failure(self) -> str:
        """What it did not pass by."""
        if self.min_cosine < MIN_COSINE:
            return f"its lowest cosine to torch is {self.min_cosine:.6f}, and {MIN_COSINE} is needed"
        moved = 1 - self.cluster_agreement_beyond_margin
        return f"it puts {moved:.1%} of the images that are no tie into other clusters than torch"

    def to_json(self) -> dict[str, Any]:
        """The content of the manifest's `equality_gate`."""
        return asdict(self)


def equality_gate(reference: Engine, candidate: Engine, images: Images, centroids: Floats) -> Gate:
    """Measure `candidate` on `images`, (n, 1, S, S) uint8 with n of at least 1, and `centroids`, (K, D).

    It passes with cosine of at least MIN_COSINE everywhere and the same cluster wherever the margin is not a tie.
    """
    if len(images) == 0:
        raise ValueError("the equality gate needs images")
    expected, given = reference.embed(images), candidate.embed(images)
    cosine = float(np.min(_cosines(expected, given)))
    agreement = _agreement(Centroids(centroids), expected, given)
    return Gate(
        images=len(images),
        min_cosine=cosine,
        cluster_agreement_beyond_margin=agreement,
        passed=cosine >= MIN_COSINE and agreement == 1.0,
    )


def export_onnx(encoder: Encoder, size: int) -> bytes:
    """The encoder as an ONNX file for uint8 images of (B, 1, size, size), any B: standard operators, all inside.

    Raises NotExportable, MissingExtra.
    """
    frozen = copy.deepcopy(encoder).cpu().eval()
    example = torch.zeros((2, 1, size, size), dtype=torch.uint8)  # of 2: a batch of 1 would be taken for a constant
    with _quiet():
        try:
            program = torch.onnx.export(
                frozen,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"images": {0: torch.export.Dim("B")}},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise NotExportable(f"the encoder {encoder.spec.name!r} cannot be expressed in ONNX") from error
        except ImportError as error:
            raise MissingExtra("onnxscript", "trainer") from error
    assert program is not None  # without a file name, the program is returned
    return _clean(program.model_proto, encoder.spec.name)


def _clean(model: Any, name: str) -> bytes:
    """The file without the exporter's notes on every node, which hold the paths of source files."""
    if foreign := {node.op_type for node in model.graph.node if node.domain not in STANDARD_DOMAINS} or model.functions:
        raise NotExportable(f"the encoder {name!r} needs operators that are not ONNX's own: {len(foreign)} of them")
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _cosines(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (
        np.einsum("nd,nd->n", x, y) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    )
    return cosines


def _agreement(centroids: Centroids, expected: Floats, given: Floats) -> float:
    if centroids.k == 1:
        return 1.0
    ids, distances = centroids.nearest(expected, 2)
    clear = distances[:, 1] - distances[:, 0] > MARGIN
    if not clear.any():
        return 1.0
    return float((ids[clear, 0] == centroids.nearest(given[clear], 1)[0][:, 0]).mean())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps, logs what it skips, and warns of its own internals."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
