"""What an artifact says of itself: the content of manifest.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from deepmcat_core.errors import ArtifactFormat, ConfigError
from deepmcat_core.frame import FramePolicy
from deepmcat_core.precision import PrecisionGate
from deepmcat_core.preprocessing import Preprocessing

FORMAT_VERSION = 1
METRIC = "cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """Which encoder: a name that encoder.py knows, and what it needs to build it (no weights)."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json.

    training: recipe, config, commit, seed, scores. decoders: "name version" of what decoded the training images.
    equality_gate: what the ONNX engine was measured at, None where there was none to measure; one that did not pass is
    not in the artifact. precision_gates: what reduced precisions were measured at; none in artifacts made before there
    were any. files: path → SHA-256.
    """

    created_at: str
    encoder: EncoderSpec
    preprocessing: Preprocessing
    frames: FramePolicy
    k: int
    dim: int
    training: dict[str, Any]
    decoders: tuple[str, ...]
    equality_gate: dict[str, Any] | None = None
    precision_gates: tuple[PrecisionGate, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    metric: str = METRIC
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """The manifest in `text`. Raises ArtifactFormat."""
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ArtifactFormat(
                    f"the artifact has format version {version!r}; this release reads version {FORMAT_VERSION}"
                )
            if data["metric"] != METRIC:
                raise ArtifactFormat(f"the artifact has metric {data['metric']!r}; this release knows {METRIC!r}")
            return cls(
                created_at=str(data["created_at"]),
                encoder=EncoderSpec(name=str(data["encoder"]["name"]), options=dict(data["encoder"]["options"])),
                preprocessing=Preprocessing.from_json(data["preprocessing"]),
                frames=FramePolicy(**data["frames"]),
                k=int(data["k"]),
                dim=int(data["dim"]),
                training=dict(data["training"]),
                decoders=tuple(str(d) for d in data["decoders"]),
                equality_gate=data["equality_gate"],
                precision_gates=tuple(PrecisionGate.from_json(gate) for gate in data.get("precision_gates", ())),
                files={str(k): str(v) for k, v in data["files"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ArtifactFormat("manifest.json is not the manifest of an artifact") from error
