"""How precisely an encoder is run, and the gate that a reduced precision has to pass before anything is served in it.

    float32     on every device: the reference
    bfloat16    its range in half the bytes: 8 significant bits
    float16     11 significant bits and less range; on CUDA only, CPUs are slower in it

A precision passes for one encoder and one kind of device, and only where the trainer measured it there: an encoder with
few channels may lose by rounding what one with many does not notice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.errors import ConfigError

Floats = npt.NDArray[np.float32]

AUTO, FLOAT32, BFLOAT16, FLOAT16 = "auto", "float32", "bfloat16", "float16"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16, FLOAT16)
REDUCED = {"cpu": (BFLOAT16,), "cuda": (BFLOAT16, FLOAT16)}
"""What can be asked for on a kind of device, in the order of preference: bfloat16 cannot overflow."""

MIN_COSINE = 0.999
MIN_AGREEMENT = 0.999
MIN_IMAGES = 100
"""Fewer say nothing of one image in a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionGate:
    """What an encoder in a reduced precision was measured at, beside float32.

    device: "cpu" or "cuda". images: calibration images. min_cosine: the lowest between two embeddings of an image, the
    self-test's included. category_agreement: the share of calibration images with the same nearest
    category.
    """

    device: str
    precision: str
    images: int
    min_cosine: float
    category_agreement: float
    passed: bool

    @classmethod
    def of(
        cls,
        *,
        device: str,
        precision: str,
        cosines: npt.NDArray[np.floating[Any]],
        same_category: npt.NDArray[np.bool_],
    ) -> PrecisionGate:
        """From the cosines of all images measured, (m,), and whether each calibration image kept its category, (n,)."""
        lowest = float(np.min(cosines, initial=1.0))
        agreement = float(np.mean(same_category)) if len(same_category) else 0.0
        return cls(
            device=kind_of(device),
            precision=precision,
            images=len(same_category),
            min_cosine=lowest,
            category_agreement=agreement,
            passed=lowest >= MIN_COSINE and agreement >= MIN_AGREEMENT and len(same_category) >= MIN_IMAGES,
        )

    @classmethod
    def from_json(cls, data: Any) -> PrecisionGate:
        """One of the manifest's `precision_gates`. Raises KeyError, TypeError, ValueError where it is none."""
        return cls(
            device=str(data["device"]),
            precision=str(data["precision"]),
            images=int(data["images"]),
            min_cosine=float(data["min_cosine"]),
            category_agreement=float(data["category_agreement"]),
            passed=data["passed"] is True,
        )

    def failure(self) -> str:
        """What it did not pass by."""
        if self.images < MIN_IMAGES:
            return f"it was measured on {self.images} calibration images, and {MIN_IMAGES} are needed"
        if not self.min_cosine >= MIN_COSINE:  # NaN too
            return f"its lowest cosine to float32 is {self.min_cosine:.5f}, and {MIN_COSINE} is needed"
        return f"{1 - self.category_agreement:.2%} of the images get another category than in float32"


def kind_of(device: str) -> str:
    """The kind of a device: cpu or cuda."""
    return device.partition(":")[0]


def choose_precision(asked: str, device: str, gates: Sequence[PrecisionGate], pays: Collection[str]) -> str:
    """The precision to run in: float32, bfloat16 or float16.

    "auto" is float32 on a CPU; on CUDA the first of REDUCED that passed its gate there and is one of `pays`, those that
    are faster on this very device, else float32. Raises ConfigError where the gate of what is asked for was not passed.
    """
    if asked not in PRECISIONS:
        raise ConfigError(f"precision is {asked!r}; {', '.join(PRECISIONS)} are precisions")
    kind = kind_of(device)
    measured = {gate.precision: gate for gate in gates if gate.device == kind}
    if asked == AUTO:
        passed = (each for each in REDUCED[kind] if each in pays and each in measured and measured[each].passed)
        return FLOAT32 if kind == "cpu" else next(passed, FLOAT32)
    if asked == FLOAT32:
        return FLOAT32
    if asked not in REDUCED[kind]:
        raise ConfigError(f"precision is {asked!r}, which is for CUDA, and the device is {device}: use auto or float32")
    if asked not in measured:
        raise ConfigError(
            f"precision is {asked!r}, and the artifact does not say how it does on {kind}: use auto or float32, "
            f"or train on a {kind} device that is faster in it, with at least {MIN_IMAGES} calibration images"
        )
    if not measured[asked].passed:
        raise ConfigError(
            f"precision is {asked!r}, and it did not pass for this artifact on {kind}: {measured[asked].failure()}; "
            "use auto or float32"
        )
    return asked
