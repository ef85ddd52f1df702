"""The same questions, answered in this process by an artifact on disk instead of a server.

The only module of the client that needs the library (deepmcat_core, with numpy and an engine); it is imported when a
LocalCategorizer is opened, through importlib, so that a client without it stays whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from deepmcat_client.async_client import MAX_IMAGE_BYTES
from deepmcat_client.errors import BY_REASON, ClientError, ImageError
from deepmcat_client.requests import Options, RawPlane, Source, load
from deepmcat_client.results import (
    Artifact,
    ArtifactInfo,
    Assignment,
    Calibration,
    Candidate,
    Catalog,
    Categorization,
    Category,
    Code,
    Embedding,
    FrameAssignment,
    PrecisionGate,
    Preprocessing,
    Term,
)

Key = TypeVar("Key")

BATCH = 16  # files read and answered at a time


class LocalCategorizer:
    """An artifact with its engine; open it with `with`. Its answers are those of a server with the same artifact.

    open_artifact: makes a deepmcat_core.Categorizer of the path; usually `deepmcat_core.load`.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        open_artifact: Callable[[Path], Any] | None = None,
    ) -> None:
        self._path = path
        self._max_image_bytes = max_image_bytes
        self._open_artifact = open_artifact or _load_with_library
        self._categorizer: Any = None

    def __enter__(self) -> LocalCategorizer:
        """Load, verify and self-test. Raises the library's own errors, whose messages are for people too."""
        self._categorizer = self._open_artifact(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Free the engine's device."""
        self._categorizer.engine.close()

    def get_artifact(self) -> ArtifactInfo:
        """The artifact that answers."""
        return ArtifactInfo(artifact=_artifact(self._categorizer.artifact), serving=None)

    def categorize_stream(
        self, items: Iterable[tuple[Key, Source]], options: Options | None = None
    ) -> Iterator[tuple[Key, Categorization | ClientError]]:
        """For each (id, image) its id and answer, in order, as `Client.categorize_stream` does."""
        options = options or Options()
        remaining = iter(items)
        while batch := list(islice(remaining, BATCH)):
            yield from zip(
                (key for key, _ in batch), self._answers([image for _, image in batch], options), strict=True
            )

    def _answers(self, images: list[Source], options: Options) -> Iterator[Categorization | ClientError]:
        contents = [self._load(image) for image in images]
        readable = [_image_source(c) for c in contents if not isinstance(c, ImageError)]
        wanted = {"top_k": options.top_k} if options.top_k else {}
        answers = iter(self._categorizer.categorize(readable, frames=options.frames, **wanted))
        for content in contents:
            yield content if isinstance(content, ImageError) else _answer(next(answers), options)

    def _load(self, image: Source) -> bytes | RawPlane | ImageError:
        try:
            return load(image, self._max_image_bytes)
        except ImageError as error:
            return error


def read_artifact(path: Path) -> tuple[ArtifactInfo, Catalog]:
    """What an artifact on disk is, verified, without opening its engine. Raises the library's ArtifactError."""
    artifact = importlib.import_module("deepmcat_core.artifact").Artifact.load(path)
    return ArtifactInfo(artifact=_artifact(artifact), serving=None), _catalog(artifact)


def _load_with_library(path: Path) -> Any:
    return importlib.import_module("deepmcat_core").load(path)


def _image_source(content: bytes | RawPlane) -> Any:
    if isinstance(content, bytes):
        return content
    plane = importlib.import_module("deepmcat_core.frame").RawPlane
    return plane(**{name: getattr(content, name) for name in RawPlane.__dataclass_fields__})


def _answer(answer: Any, options: Options) -> Categorization | ClientError:
    if isinstance(answer, Exception):
        return BY_REASON.get(getattr(answer, "reason", ""), ImageError)(str(answer))
    embedding = answer.embedding
    return Categorization(
        assignment=_assignment(answer.assignment),
        frames=tuple(
            FrameAssignment(frame_number=f.index + 1, assignment=_assignment(f.assignment)) for f in answer.frames
        ),
        total_frames=answer.total_frames,
        flags=tuple(sorted(flag.value for flag in answer.flags)),
        embedding=Embedding(dim=len(embedding), data=embedding.astype("<f4").tobytes())
        if options.want_embedding
        else None,
        artifact_id=answer.artifact_id,
        catalog_version=answer.catalog_version,
    )


def _assignment(a: Any) -> Assignment:
    return Assignment(
        category_id=a.category_id,
        category=a.category,
        cluster_id=a.cluster_id,
        distance=a.distance,
        p_value=a.p_value,
        outlier=a.outlier,
        candidates=tuple(
            Candidate(category_id=c.category_id, category=c.category, cluster_id=c.cluster_id, distance=c.distance)
            for c in a.candidates
        ),
    )


def _artifact(artifact: Any) -> Artifact:
    m, c = artifact.manifest, artifact.calibration
    return Artifact(
        artifact_id=artifact.artifact_id,
        created_at=m.created_at,
        encoder=m.encoder.name,
        dim=m.dim,
        clusters=m.k,
        categories=len(artifact.catalog.active),
        catalog_version=artifact.catalog.version,
        preprocessing=Preprocessing(
            version=m.preprocessing.version,
            size=m.preprocessing.size,
            intensity=m.preprocessing.intensity.mode,
            frames=m.frames.count,
        ),
        calibration=Calibration(
            images=c.images,
            groups=c.verdict_groups,
            alpha=c.alpha,
            has_verdicts=c.has_verdicts,
            note=c.note(),
        ),
        recipe=str(m.training.get("recipe", "")),
        decoders=tuple(m.decoders),
        precision_gates=tuple(
            PrecisionGate(**{name: getattr(gate, name) for name in PrecisionGate.__dataclass_fields__})
            for gate in m.precision_gates
        ),
    )


def _catalog(artifact: Any) -> Catalog:
    categories = sorted(artifact.catalog.categories, key=lambda c: -c.fit_images)
    return Catalog(
        artifact_id=artifact.artifact_id,
        version=artifact.catalog.version,
        categories=tuple(_category(c) for c in categories),
    )


def _category(c: Any) -> Category:
    return Category(
        category_id=c.id,
        name=c.name,
        status=c.status.value,
        codes=tuple(Code(scheme=code.scheme, value=code.value, meaning=code.meaning) for code in c.codes),
        cluster_ids=tuple(c.clusters),
        fit_images=c.fit_images,
        lineage=tuple(c.lineage),
        terms=tuple(Term(attribute=t.attribute, value=t.value, share=t.share) for t in c.terms),
    )
