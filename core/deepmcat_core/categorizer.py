"""The whole path as a library: bytes in, categorizations out.

    bytes ─read_planes─► Planes ─embed─► rows: embeddings ─Assigner─► Categorization

The server runs the same two halves (`read_planes` in its decoding workers, `answer` after its batches), so an image
gets the same answer from a library call, a bulk job and an RPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepmcat_core.artifact import Artifact
from deepmcat_core.assigner import DEFAULT_TOP_K, SEARCH_FACTOR, Assigner, Assignment
from deepmcat_core.catalog import Catalog
from deepmcat_core.centroids import Centroids
from deepmcat_core.engine import Engine, Images, SearchingEngine, open_engine
from deepmcat_core.errors import ImageError
from deepmcat_core.frame import FramePolicy, ImageFlag, ImageSource, Limits
from deepmcat_core.planes import Planes, ReadOptions, read_planes
from deepmcat_core.precision import kind_of
from deepmcat_core.rows import embeddings_of

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameAssignment:
    """The assignment of one frame. index: 0-based."""

    index: int
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorization:
    """The answer for one image. embedding: (D,), of the frame that the assignment names."""

    assignment: Assignment
    frames: tuple[FrameAssignment, ...]
    total_frames: int
    flags: frozenset[ImageFlag]
    embedding: Floats
    artifact_id: str
    catalog_version: int


class Categorizer:
    """A loaded artifact with its engine. `categorize` is the whole path; `read_options`, `embed`, `answer` its parts.

    An engine on a GPU finds the nearest clusters there as well. On a CPU whoever assigns searches for them, perhaps in
    another thread.
    """

    def __init__(self, artifact: Artifact, engine: Engine, limits: Limits | None = None) -> None:
        self.artifact = artifact
        self.engine = engine
        self.limits = limits or Limits()
        self._centroids = Centroids(artifact.centroids)
        self._searching = engine if isinstance(engine, SearchingEngine) and kind_of(engine.device) == "cuda" else None
        if self._searching is not None:
            self._searching.search_among(artifact.centroids, DEFAULT_TOP_K * SEARCH_FACTOR)
        self.assigner = Assigner(self._centroids, artifact.calibration, artifact.catalog)

    @property
    def catalog(self) -> Catalog:
        """The catalog in force here."""
        return self.assigner.catalog

    def use_catalog(self, catalog: Catalog) -> None:
        """Put another catalog version in force, atomically: an answer uses one version throughout."""
        self.assigner = Assigner(self._centroids, self.artifact.calibration, catalog)

    def read_options(self, frames: int = 0) -> ReadOptions:
        """How to read an image for this artifact. frames: how many of a multi-frame image; 0: the artifact's policy."""
        policy = self.artifact.manifest.frames
        if frames:
            policy = FramePolicy(count=min(frames, self.limits.max_frames))
        return ReadOptions(preprocessing=self.artifact.manifest.preprocessing, frames=policy, limits=self.limits)

    def embed(self, images: Images) -> Floats:
        """(B, 1, S, S) uint8 → rows (B, W), as rows.py has them. Raises InferenceError."""
        return self.engine.embed(images) if self._searching is None else self._searching.embed_rows(images)

    def embeddings_of(self, rows: Floats) -> Floats:
        """The embeddings (B, D) of rows."""
        return embeddings_of(rows, self._centroids.dim)

    def answer(self, planes: Planes, rows: Floats, top_k: int = DEFAULT_TOP_K) -> Categorization:
        """The answer for an image whose frames have these rows, (F, W)."""
        assigner = self.assigner
        return self.answer_from(planes, rows, assigner.assign(rows, top_k), assigner)

    def answer_from(
        self, planes: Planes, rows: Floats, assignments: Sequence[Assignment], assigner: Assigner
    ) -> Categorization:
        """The same, of frames that `assigner` has assigned already."""
        combined, named = assigner.combine(assignments)
        return Categorization(
            assignment=combined,
            frames=tuple(
                FrameAssignment(index=index, assignment=replace(assignment, candidates=()))
                for index, assignment in zip(planes.frame_indices, assignments, strict=True)
            ),
            total_frames=planes.total_frames,
            flags=planes.flags,
            embedding=self.embeddings_of(rows)[named],
            artifact_id=self.artifact.artifact_id,
            catalog_version=assigner.catalog.version,
        )

    def categorize(
        self, images: Sequence[ImageSource], *, top_k: int = DEFAULT_TOP_K, frames: int = 0
    ) -> list[Categorization | ImageError]:
        """One answer per image, in order; an image that cannot be answered gives its error and disturbs no other.

        Decodes in this process. For untrusted input use the server or a DecodePool, whose workers may die.
        """
        options = self.read_options(frames)
        read = [_read(image, options) for image in images]
        planes = [p for p in read if isinstance(p, Planes)]
        if not planes:
            return [p for p in read if isinstance(p, ImageError)]
        rows = self.embed(np.concatenate([p.planes for p in planes])[:, None])  # (ΣF, W)
        ends = np.cumsum([len(p.planes) for p in planes])
        of_each = np.split(rows, ends[:-1])
        assigner = self.assigner
        assigned = assigner.assign_each([(frames, top_k) for frames in of_each])
        found = zip(planes, of_each, assigned, strict=True)
        answers = (self.answer_from(image, frames, each, assigner) for image, frames, each in found)
        return [p if isinstance(p, ImageError) else next(answers) for p in read]


def load(
    path: Path | str, *, device: str = "auto", precision: str = "auto", limits: Limits | None = None
) -> Categorizer:
    """Load and verify an artifact, open its engine and run its self-test.

    device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1". precision: as for
    `precision.choose_precision`. Raises ArtifactError, ConfigError.
    """
    artifact = Artifact.load(path)
    return Categorizer(artifact, open_engine(artifact, device=device, precision=precision), limits)


def _read(image: ImageSource, options: ReadOptions) -> Planes | ImageError:
    try:
        return read_planes(image, options)
    except ImageError as error:
        return error
