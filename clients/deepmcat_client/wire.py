"""Between our dataclasses and the messages of deepmcat.v1; the only module that knows the fields of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client.errors import ClientError
from deepmcat_client.requests import Options, RawPlane
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
    Limits,
    PrecisionGate,
    Preprocessing,
    Serving,
    Term,
)
from deepmcat_client.status import from_status

CHUNK_BYTES = 2**20
"""Files over this travel in chunks of this size (deepmcat.v1 allows 1 MiB a chunk)."""

_STATUS: dict[int, Literal["suggested", "named", "retired"]] = {
    pb.CATEGORY_STATUS_SUGGESTED: "suggested",
    pb.CATEGORY_STATUS_NAMED: "named",
    pb.CATEGORY_STATUS_RETIRED: "retired",
}


def options_message(options: Options, timeout_s: float | None = None) -> pb.CategorizeOptions:
    """The options of one image. timeout_s: how long an image of a stream may take; None: the server's default."""
    return pb.CategorizeOptions(
        frames=options.frames,
        top_k=options.top_k,
        want_embedding=options.want_embedding,
        artifact_id=options.artifact_id,
        timeout_ms=0 if timeout_s is None else max(1, round(timeout_s * 1000)),
    )


def item_request(item_id: str, image: bytes | RawPlane, options: pb.CategorizeOptions) -> pb.CategorizeRequest:
    """One whole image as a request."""
    content = pb.Image(encoded=image) if isinstance(image, bytes) else pb.Image(raw=_raw_plane(image))
    return pb.CategorizeRequest(item_id=item_id, image=content, options=options)


def stream_requests(
    item_id: str, image: bytes | RawPlane, options: pb.CategorizeOptions
) -> Iterator[pb.CategorizeStreamRequest]:
    """The messages of one image of a stream: one, or an announcement and its chunks."""
    if isinstance(image, RawPlane) or len(image) <= CHUNK_BYTES:
        yield pb.CategorizeStreamRequest(item=item_request(item_id, image, options))
        return
    announced = pb.Image(chunked=pb.ChunkedContent(size_bytes=len(image)))
    yield pb.CategorizeStreamRequest(item=pb.CategorizeRequest(item_id=item_id, image=announced, options=options))
    for start in range(0, len(image), CHUNK_BYTES):
        yield pb.CategorizeStreamRequest(chunk=image[start : start + CHUNK_BYTES])


def stream_answer(message: pb.CategorizeStreamResponse) -> Categorization | ClientError:
    """The answer for one image of a stream."""
    if message.WhichOneof("result") == "error":
        return from_status(message.error)
    return categorization(message.categorization)


def categorization(message: pb.Categorization) -> Categorization:
    """The answer for one image."""
    embedding = message.embedding
    return Categorization(
        assignment=_assignment(message.assignment),
        frames=tuple(
            FrameAssignment(frame_number=f.frame_number, assignment=_assignment(f.assignment)) for f in message.frames
        ),
        total_frames=message.total_frames,
        flags=tuple(sorted(_flag(flag) for flag in message.flags)),
        embedding=Embedding(dim=embedding.dim, data=embedding.data) if message.HasField("embedding") else None,
        artifact_id=message.artifact_id,
        catalog_version=message.catalog_version,
    )


def artifact_info(message: pb.GetArtifactResponse) -> ArtifactInfo:
    """An artifact and the server around it."""
    a, limits = message.artifact, message.limits
    return ArtifactInfo(
        artifact=Artifact(
            artifact_id=a.artifact_id,
            created_at=a.created_at,
            encoder=a.encoder,
            dim=a.dim,
            clusters=a.clusters,
            categories=a.categories,
            catalog_version=a.catalog_version,
            preprocessing=_preprocessing(a.preprocessing),
            calibration=_calibration(a.calibration),
            recipe=a.recipe,
            decoders=tuple(a.decoders),
            precision_gates=tuple(_precision_gate(gate) for gate in a.precision_gates),
        ),
        serving=Serving(
            engine=message.engine,
            device=message.device,
            precision=message.precision,
            version=message.server_version,
            decoders=tuple(message.decoders),
            limits=Limits(**{name: getattr(limits, name) for name in Limits.__dataclass_fields__}),
        ),
    )


def catalog(message: pb.ListCategoriesResponse) -> Catalog:
    """The categories in force."""
    return Catalog(
        artifact_id=message.artifact_id,
        version=message.catalog_version,
        categories=tuple(_category(c) for c in message.categories),
    )


def _raw_plane(plane: RawPlane) -> pb.RawPlane:
    return pb.RawPlane(
        rows=plane.rows,
        columns=plane.columns,
        sample_type=f"SAMPLE_TYPE_{plane.sample_type.upper()}",
        photometric_interpretation=pb.PHOTOMETRIC_INTERPRETATION_MONOCHROME1
        if plane.inverted
        else pb.PHOTOMETRIC_INTERPRETATION_MONOCHROME2,
        data=plane.data,
    )


def _precision_gate(message: pb.PrecisionGate) -> PrecisionGate:
    return PrecisionGate(**{name: getattr(message, name) for name in PrecisionGate.__dataclass_fields__})


def _assignment(message: pb.Assignment) -> Assignment:
    return Assignment(
        category_id=message.category_id,
        category=message.category,
        cluster_id=message.cluster_id,
        distance=message.distance,
        p_value=message.p_value if message.HasField("p_value") else None,
        outlier=message.outlier if message.HasField("outlier") else None,
        candidates=tuple(
            Candidate(category_id=c.category_id, category=c.category, cluster_id=c.cluster_id, distance=c.distance)
            for c in message.candidates
        ),
    )


def _flag(value: int) -> str:
    """The flag's name without its prefix; a number for one that this release does not know."""
    known = pb.ImageFlag.DESCRIPTOR.values_by_number.get(value)
    return known.name.removeprefix("IMAGE_FLAG_") if known else str(value)


def _preprocessing(message: pb.Preprocessing) -> Preprocessing:
    return Preprocessing(version=message.version, size=message.size, intensity=message.intensity, frames=message.frames)


def _calibration(message: pb.Calibration) -> Calibration:
    return Calibration(
        images=message.images,
        groups=message.groups,
        alpha=message.alpha,
        has_verdicts=message.has_verdicts,
        note=message.note,
    )


def _category(message: pb.Category) -> Category:
    return Category(
        category_id=message.category_id,
        name=message.name,
        status=_STATUS.get(message.status, "unspecified"),
        codes=tuple(Code(scheme=c.scheme, value=c.value, meaning=c.meaning) for c in message.codes),
        cluster_ids=tuple(message.cluster_ids),
        fit_images=message.fit_images,
        lineage=tuple(message.lineage),
        terms=tuple(Term(attribute=t.attribute, value=t.value, share=t.share) for t in message.terms),
    )
