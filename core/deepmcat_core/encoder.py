"""From uint8 images to unit embeddings: the part that is trained, and run by engine.py.

    (B, 1, S, S) uint8 ─normalise─► (B, C, S, S) ─backbone─► features (B, F) ─projection─► (B, D) ─L2─► embeddings

`EncoderSpec` (manifest.py) says which: a name of BACKBONES, and options for it. options["projection"], where there is
one, is {"kind": "linear", "in": F, "out": D}, {"kind": "mlp", "in": F, "hidden": H, "out": D} or, for features of
several parts that each become a *view* of unit length, {"kind": "views", "in": [F1, F2, …], "out": [D1, D2, …]}.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.backbones.efficientnet_lite import EfficientNetLite0
from deepmcat_core.backbones.gradients import Gradients
from deepmcat_core.backbones.huggingface import HuggingFace
from deepmcat_core.backbones.resnet import ResNet18
from deepmcat_core.backbones.vgg import SmallVggSobel, Vgg16Sobel
from deepmcat_core.config import suggest
from deepmcat_core.errors import ArtifactDamaged, ConfigError
from deepmcat_core.manifest import EncoderSpec

BACKBONES: dict[str, type[Backbone]] = {
    "vgg16bn-sobel": Vgg16Sobel,
    "small-vgg-sobel": SmallVggSobel,
    "resnet18": ResNet18,
    "efficientnet-lite0": EfficientNetLite0,
    "gradients": Gradients,
    "hf": HuggingFace,
}

Weights = dict[str, npt.NDArray[Any]]

_ZERO = 1e-12  # features shorter than this have no direction


class Encoder(nn.Module):
    """Backbone, optional projection, unit length. Build one with `build_encoder` or `pretrained`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: EncoderSpec, backbone: Backbone) -> None:
        """`spec`: what builds this encoder again; its projection is made here, with random weights."""
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.projection, self.dim = _projection(spec.options.get("projection"), backbone.dim)
        # Not part of the weights: the backbone states them, and a spec names the backbone.
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1), persistent=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Raw features, before the projection: (B, F) float32.

        images: (B, 1, S, S), uint8, or floats from 0 to 1 as augmentation makes them.
        """
        grey = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images
        features: torch.Tensor = self.backbone((grey - self.mean) / self.std)  # repeats the channel where C is 3
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of (B, 1, S, S) images: (B, D) float32 unit vectors. Features of zero length get a fixed one."""
        projected = self.projection(self.features(images))
        length = projected.square().sum(dim=1, keepdim=True).sqrt()
        # `<=` and not its contrary: NaN must stay NaN, for the engine to refuse it.
        return F.normalize(torch.where(length <= _ZERO, torch.ones_like(projected), projected), eps=_ZERO)

    @property
    def views(self) -> tuple[int, ...]:
        """The dimensions of each view in an embedding, one after the other: (D,) where there is only one."""
        return self.projection.dims if isinstance(self.projection, Views) else (self.dim,)

    def projected(self, weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> Encoder:
        """The same backbone under another projection, features @ weight.T + bias. weight: (D, F), bias: (D,)."""
        options = {"kind": "linear", "in": int(weight.shape[1]), "out": int(weight.shape[0])}
        return self._under(options, _linear("", weight, bias))

    def with_mlp(self, network: nn.Sequential) -> Encoder:
        """The same backbone under a copy of `network`: Linear, batch norm, ReLU, Linear, from (B, F) to (B, D)."""
        first, last = network[0], network[-1]
        options = {"kind": "mlp", "in": first.in_features, "hidden": first.out_features, "out": last.out_features}
        return self._under(options, network.state_dict())

    def viewed(self, weights: Sequence[npt.NDArray[Any]], biases: Sequence[npt.NDArray[Any]]) -> Encoder:
        """The same backbone under views of its parts: part @ weight.T + bias, of (D_v, F_v) and (D_v,) each."""
        before, after = [int(w.shape[1]) for w in weights], [int(w.shape[0]) for w in weights]
        state: dict[str, torch.Tensor] = {}
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            state |= _linear(f"{i}.", weight, bias)
        return self._under({"kind": "views", "in": before, "out": after}, state)

    def _under(self, projection: dict[str, Any], state: Mapping[str, torch.Tensor]) -> Encoder:
        """The same backbone under a projection of these options and weights."""
        encoder = Encoder(replace(self.spec, options={**self.spec.options, "projection": projection}), self.backbone)
        encoder.projection.load_state_dict(state)
        return encoder.to(self.mean.device).train(self.training)

    def weights(self) -> Weights:
        """A copy of all weights and running statistics by name, as an artifact stores them."""
        return {name: np.array(value.cpu().numpy(), order="C") for name, value in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over exactly these weights. Raises ArtifactDamaged where a name or a shape differs."""
        own = self.state_dict()
        for name in sorted(own.keys() | weights.keys()):
            if name not in weights or name not in own:
                raise ArtifactDamaged(
                    f"the weights do not fit the encoder {self.spec.name!r}: "
                    f"{name!r} is {'missing' if name in own else 'not part of it'}"
                )
            if tuple(own[name].shape) != weights[name].shape:
                raise ArtifactDamaged(
                    f"the weights do not fit the encoder {self.spec.name!r}: {name!r} has shape {weights[name].shape}, "
                    f"not {tuple(own[name].shape)}"
                )
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


class Views(nn.Module):
    """Features of several parts, each projected by itself to unit length: (B, F1 + F2 + …) → (B, D1 + D2 + …).

    The cosine of two embeddings is then the mean of the cosines of their views, however long the parts were.
    """

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(before)
        self.dims = tuple(after)
        for i, (features, dim) in enumerate(zip(before, after, strict=True)):
            self.add_module(str(i), nn.Linear(features, dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, ΣF) → (B, ΣD), of unit length together."""
        parts = torch.split(features, self.sizes, dim=1)
        views = [F.normalize(linear(part), eps=_ZERO) for linear, part in zip(self.children(), parts, strict=True)]
        return torch.cat(views, dim=1) / math.sqrt(len(views))


def _linear(prefix: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> dict[str, torch.Tensor]:
    return {f"{prefix}weight": torch.from_numpy(np.array(weight)), f"{prefix}bias": torch.from_numpy(np.array(bias))}


def parse_encoder(text: str) -> EncoderSpec:
    """What a person calls an encoder: a name of BACKBONES, or hf:FOLDER. Raises ConfigError."""
    name, colon, path = text.partition(":")
    if name == "hf":
        if not path:
            raise ConfigError("the encoder 'hf' needs the folder of a transformers model: hf:FOLDER")
        return EncoderSpec(name="hf", options={"path": path})
    if colon:
        raise ConfigError(f"the encoder {text!r} has a colon, which only hf:FOLDER takes")
    _backbone(name)
    return EncoderSpec(name=name)


def build_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of a spec with random weights. Raises ConfigError, MissingExtra."""
    kind = _backbone(spec.name)
    if "path" in spec.options:
        raise ConfigError("the encoder 'hf' takes its weights from its folder and cannot start from random ones")
    options = _own_options(spec)
    _check_options(spec.name, kind, options)
    needed = inspect.signature(kind).parameters.values()
    if lacking := [p.name for p in needed if p.default is inspect.Parameter.empty and p.name not in options]:
        raise ConfigError(f"the encoder {spec.name!r} needs the option {lacking[0]!r}")
    return Encoder(spec, kind(**options))


def pretrained(spec: EncoderSpec) -> Encoder:
    """The encoder of a spec with weights that others trained; its own spec builds it again without them.

    Raises ConfigError, also where there are no such weights, and MissingExtra.
    """
    kind = _backbone(spec.name)
    given = _own_options(spec)
    _check_options(spec.name, kind, {key: value for key, value in given.items() if key != "path"})
    backbone, options = kind.pretrained(**given)
    projection = {key: value for key, value in spec.options.items() if key == "projection"}
    return Encoder(EncoderSpec(name=spec.name, options={**options, **projection}), backbone).eval()


def _backbone(name: str) -> type[Backbone]:
    if name not in BACKBONES:
        raise ConfigError(f"there is no encoder {name!r}.{suggest(name, BACKBONES)}")
    return BACKBONES[name]


def _own_options(spec: EncoderSpec) -> dict[str, Any]:
    return {key: value for key, value in spec.options.items() if key != "projection"}


def _check_options(name: str, kind: type[Backbone], options: Mapping[str, Any]) -> None:
    known = [key for key in inspect.signature(kind).parameters if key != "model"]
    for key in options:
        if key not in known:
            raise ConfigError(f"the encoder {name!r} has no option {key!r}.{suggest(key, [*known, 'projection'])}")


def _projection(options: Mapping[str, Any] | None, features: int) -> tuple[nn.Module, int]:
    if options is None:
        return nn.Identity(), features
    if options.get("kind") == "views":
        return _views(options, features)
    try:
        kind, before, after = options["kind"], int(options["in"]), int(options["out"])
        hidden = int(options["hidden"]) if kind == "mlp" else 0
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("a projection has kind, in and out, and hidden where kind is 'mlp'") from error
    if before != features:
        raise ConfigError(f"the projection takes {before} features; the backbone has {features}")
    if kind == "linear":
        return nn.Linear(before, after), after
    if kind == "mlp":
        layers = nn.Linear(before, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, after)
        return nn.Sequential(*layers), after
    raise ConfigError(f"there is no projection {kind!r}.{suggest(str(kind), ['linear', 'mlp', 'views'])}")


def _views(options: Mapping[str, Any], features: int) -> tuple[Views, int]:
    try:
        before, after = [int(n) for n in options["in"]], [int(n) for n in options["out"]]
        if min(*before, *after) < 1:
            raise ValueError
        views = Views(before, after)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("a projection of views has in and out, equally long lists") from error
    if sum(before) != features:
        raise ConfigError(f"the projection takes {sum(before)} features; the backbone has {features}")
    return views, sum(after)
