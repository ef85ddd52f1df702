"""What an encoder loses in each reduced precision that is faster on the device it was trained on.

The calibration images are the judges: no cluster was fitted to them, and their embeddings in float32 are known already.
They judge the nearest category and not whether an image is an outlier: that is told by their own scores, so an image at
the threshold is its own threshold, and the least rounding, of float32 too, puts it on the other side.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt

from deepmcat_core.artifact import SelfTest
from deepmcat_core.assigner import Assigner
from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import Engine
from deepmcat_core.engine_torch import TorchEngine
from deepmcat_core.precision import PrecisionGate

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

MOST_IMAGES = {"cpu": 512, "cuda": 4096}
"""So that it costs seconds; of VGG-16 on a CPU, half a minute. Of 512, one with another category is one too many."""


def measured(
    encoder: Encoder,
    device: str,
    precision: str,
    *,
    images: Images,
    expected: Floats,
    assigner: Assigner,
    self_test: SelfTest,
) -> PrecisionGate:
    """The gate of an encoder, which is left as it is. Raises InferenceError where it does not run in that precision.

    images: of the calibration split, (n, 1, S, S). expected: their embeddings in float32, (n, D).
    """
    candidate = TorchEngine(copy.deepcopy(encoder), device, size=images.shape[-1], precision=precision, graphs=False)
    try:
        return precision_gate(candidate, images, expected, assigner, self_test)
    finally:
        candidate.close()


def precision_gate(
    candidate: Engine, images: Images, expected: Floats, assigner: Assigner, self_test: SelfTest
) -> PrecisionGate:
    """What `candidate` is measured at, by `images` (n, 1, S, S) and `expected` (n, D), and by the self-test's."""
    given = candidate.embed(images)
    cosines = [
        np.einsum("nd,nd->n", expected, given),
        np.einsum("nd,nd->n", self_test.embeddings, candidate.embed(self_test.images)),
    ]
    before, after = (np.array([a.candidates[0].category_id for a in assigner.assign(e, 1)]) for e in (expected, given))
    return PrecisionGate.of(
        device=candidate.device,
        precision=candidate.precision,
        cosines=np.concatenate(cosines),
        same_category=before == after,
    )
