"""From the core to the wire: answers and descriptions as messages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_core.artifact import Artifact
from deepmcat_core.assigner import Assignment
from deepmcat_core.calibration import Calibration
from deepmcat_core.catalog import Catalog, Category, CategoryStatus
from deepmcat_core.categorizer import Categorization
from deepmcat_core.frame import ImageFlag

STATUSES = {
    CategoryStatus.SUGGESTED: pb.CATEGORY_STATUS_SUGGESTED,
    CategoryStatus.NAMED: pb.CATEGORY_STATUS_NAMED,
    CategoryStatus.RETIRED: pb.CATEGORY_STATUS_RETIRED,
}
FLAGS: dict[ImageFlag, pb.ImageFlag] = {
    flag: pb.ImageFlag.Value(f"IMAGE_FLAG_{flag.value}")  # type: ignore[misc]  # the stubs call values int
    for flag in ImageFlag
}


def categorization(answer: Categorization, *, want_embedding: bool) -> pb.Categorization:
    """An answer."""
    return pb.Categorization(
        assignment=assignment(answer.assignment),
        frames=[
            pb.FrameAssignment(frame_number=frame.index + 1, assignment=assignment(frame.assignment))
            for frame in answer.frames
        ],
        total_frames=answer.total_frames,
        flags=sorted(FLAGS[flag] for flag in answer.flags),
        embedding=embedding(answer.embedding) if want_embedding else None,
        artifact_id=answer.artifact_id,
        catalog_version=answer.catalog_version,
    )


def assignment(a: Assignment) -> pb.Assignment:
    """An assignment; p_value and outlier stay absent where there is no verdict."""
    return pb.Assignment(
        category_id=a.category_id,
        category=a.category,
        cluster_id=a.cluster_id,
        distance=a.distance,
        p_value=a.p_value,
        outlier=a.outlier,
        candidates=[
            pb.Candidate(category_id=c.category_id, category=c.category, cluster_id=c.cluster_id, distance=c.distance)
            for c in a.candidates
        ],
    )


def embedding(vector: npt.NDArray[np.float32]) -> pb.Embedding:
    """An embedding, (D,), packed: `repeated float` costs a hundred times more."""
    return pb.Embedding(type=pb.EMBEDDING_TYPE_FLOAT32, dim=len(vector), data=vector.astype("<f4").tobytes())


def artifact(a: Artifact, catalog: Catalog) -> pb.Artifact:
    """What the trainer made."""
    m = a.manifest
    return pb.Artifact(
        artifact_id=a.artifact_id,
        created_at=m.created_at,
        encoder=m.encoder.name,
        dim=m.dim,
        clusters=m.k,
        categories=len(catalog.active),
        catalog_version=catalog.version,
        preprocessing=pb.Preprocessing(
            version=m.preprocessing.version,
            size=m.preprocessing.size,
            intensity=m.preprocessing.intensity.mode,
            frames=m.frames.count,
        ),
        calibration=calibration(a.calibration),
        recipe=str(m.training.get("recipe", "")),
        decoders=m.decoders,
        precision_gates=[
            pb.PrecisionGate(
                device=gate.device,
                precision=gate.precision,
                images=gate.images,
                min_cosine=gate.min_cosine,
                category_agreement=gate.category_agreement,
                passed=gate.passed,
            )
            for gate in m.precision_gates
        ],
    )


def calibration(c: Calibration) -> pb.Calibration:
    """How outliers are told."""
    return pb.Calibration(
        images=c.images,
        groups=c.verdict_groups,
        alpha=c.alpha,
        has_verdicts=c.has_verdicts,
        note=c.note(),
    )


def categories(catalog: Catalog) -> Iterable[pb.Category]:
    """The categories of a catalog, largest first."""
    return map(category, sorted(catalog.categories, key=lambda c: -c.fit_images))


def category(c: Category) -> pb.Category:
    """One category."""
    return pb.Category(
        category_id=c.id,
        name=c.name,
        codes=[pb.Code(scheme=code.scheme, value=code.value, meaning=code.meaning) for code in c.codes],
        status=STATUSES[c.status],
        cluster_ids=c.clusters,
        fit_images=c.fit_images,
        lineage=c.lineage,
        terms=[pb.Term(attribute=t.attribute, value=t.value, share=t.share) for t in c.terms],
    )
