"""Typed answers, the same from a server (Client, AsyncClient) and from a local artifact (LocalCategorizer).

The fields are those of deepmcat.v1; its comments say what they mean.
"""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A category near an image, by its nearest fine cluster. distance: 1 − cosine."""

    category_id: str
    category: str
    cluster_id: int
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What an image is. p_value and outlier are None where the artifact can give no verdict.

    Where `outlier` is true, category and category_id are "unknown"; `candidates` holds the nearest all the same.
    """

    category_id: str
    category: str
    cluster_id: int
    distance: float
    p_value: float | None
    outlier: bool | None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameAssignment:
    """The assignment of one frame. frame_number: from 1, as DICOM counts."""

    frame_number: int
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """A unit vector. data: `dim` little-endian float32. It identifies patients: treat it as patient data."""

    dim: int
    data: bytes

    def floats(self) -> array.array[float]:
        """The elements; numpy users take `np.frombuffer(embedding.data, "<f4")` instead."""
        values = array.array("f", self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorization:
    """The answer for one image: one assignment for the whole and one per frame used.

    flags: "DERIVED", "LOCALIZER", "BURNED_IN_TEXT_POSSIBLE" … as deepmcat.v1 names them, sorted.
    embedding: only where it was asked for.
    """

    assignment: Assignment
    frames: tuple[FrameAssignment, ...]
    total_frames: int
    flags: tuple[str, ...]
    embedding: Embedding | None
    artifact_id: str
    catalog_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a frame becomes the encoder's input. frames: how many of a multi-frame image are used."""

    version: int
    size: int
    intensity: str
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How p-values and outliers come about. note: one sentence for people."""

    images: int
    groups: int
    alpha: float
    has_verdicts: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionGate:
    """What the encoder in a reduced precision was measured at, beside float32. device: "cpu" or "cuda"."""

    device: str
    precision: str
    images: int
    min_cosine: float
    category_agreement: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What the trainer made. decoders: those it was made with, "name version"."""

    artifact_id: str
    created_at: str
    encoder: str
    dim: int
    clusters: int
    categories: int
    catalog_version: int
    preprocessing: Preprocessing
    calibration: Calibration
    recipe: str
    decoders: tuple[str, ...]
    precision_gates: tuple[PrecisionGate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a server. What exceeds one is refused with a reason, never cut."""

    max_message_bytes: int
    max_image_bytes: int
    max_chunk_bytes: int
    max_frames: int
    max_side: int
    max_stream_in_flight: int
    max_queue: int
    max_item_id_bytes: int
    default_timeout_ms: int
    max_timeout_ms: int
    max_streams: int
    max_calls: int
    decode_timeout_ms: int
    decode_cpu_ms: int
    decode_memory_bytes: int
    decode_workers: int
    max_batch: int
    queue_budget_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The server around an artifact. decoders: those it decodes with, "name version".

    precision: empty where the engine is elsewhere.
    """

    engine: str
    device: str
    precision: str
    version: str
    decoders: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInfo:
    """An artifact and what serves it; `serving` is None for an artifact on disk."""

    artifact: Artifact
    serving: Serving | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An entry of a terminology, such as SCT or DCM."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A coded term and the share of a category's training images that have it."""

    attribute: str
    value: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """What people call one or more fine clusters. lineage: ids of the categories it came from."""

    category_id: str
    name: str
    status: Literal["suggested", "named", "retired", "unspecified"]
    codes: tuple[Code, ...]
    cluster_ids: tuple[int, ...]
    fit_images: int
    lineage: tuple[str, ...]
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The categories in force, the largest first, retired ones included."""

    artifact_id: str
    version: int
    categories: tuple[Category, ...]
