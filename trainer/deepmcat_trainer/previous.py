"""What the artifact before says of a dataset's fit images: its own encoder, centroids, calibration and catalog."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepmcat_core.artifact import Artifact
from deepmcat_core.assigner import Assigner
from deepmcat_core.catalog import UNKNOWN
from deepmcat_core.centroids import Centroids
from deepmcat_core.engine import open_engine
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.evaluate import check_same_pixels
from deepmcat_trainer.features import BATCH
from deepmcat_trainer.lineage import OUTLIER, Previous
from deepmcat_trainer.progress import progress
from deepmcat_trainer.splits import Split


def consult(path: Path, dataset: Dataset, device: str) -> Previous:
    """Assign the fit images of `dataset` with the artifact at `path`, each as the server would answer for it.

    Raises ArtifactError, and ConfigError where the artifact sees images in another way than the dataset has them.
    """
    artifact = Artifact.load(path)
    try:
        check_same_pixels(artifact, dataset)
    except ConfigError as error:
        raise ConfigError(f"--previous {path}: {error}, or leave --previous away") from error
    positions = {category.id: i for i, category in enumerate(artifact.catalog.active)} | {UNKNOWN: OUTLIER}
    rows = dataset.indices(Split.FIT)
    held = np.empty(len(rows), dtype=np.int64)
    engine = open_engine(artifact, device=device)
    try:
        assigner = Assigner(Centroids(artifact.centroids, engine.device), artifact.calibration, artifact.catalog)
        with progress("asking the previous artifact", total=len(rows)) as advance:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                embeddings = engine.embed(np.ascontiguousarray(dataset.images[batch])[:, None])
                held[start : start + len(batch)] = [positions[a.category_id] for a in assigner.assign(embeddings, 1)]
                advance(len(batch))
    finally:
        engine.close()
    return Previous(artifact_id=artifact.artifact_id, catalog=artifact.catalog, held=held)
