"""Any vision model of transformers, from a local folder: how a hospital plugs DINOv2 or RAD-DINO in.

The artifact stays self-contained: it holds the model's configuration in the encoder's options and its weights beside
all others, and never the folder's path. Nothing is downloaded, no pickle is read, no code of a model's folder is run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.nn import functional as F

from deepmcat_core.backbones.backbone import Backbone
from deepmcat_core.errors import ConfigError, MissingExtra

Pooling = Literal["pooler", "cls", "mean"]
Options = dict[str, Any]

NOT_THE_NETWORK = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "id2label", "label2id")
"""Of a configuration, what says where it was, how it was stored and what its classifier's labels are called."""


class HuggingFace(Backbone):
    """A vision model of transformers and how its output becomes features."""

    def __init__(
        self,
        config: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        pooling: Pooling,
        dim: int,
        model: nn.Module | None = None,
    ) -> None:
        """config: the model's. mean, std: of its preprocessing. dim: of its features.

        size: the side that images are resized to; 0 leaves them. pooling: "pooler" takes the model's pooled output,
        "cls" the first token, "mean" the mean over tokens or positions. model: made of `config` where not given.
        """
        super().__init__()
        self.model = model or _random_model(config)
        self.mean, self.std, self.dim = tuple(mean), tuple(std), dim
        self.size, self.pooling = size, pooling

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) → (B, dim)."""
        if self.size and images.shape[-1] != self.size:
            shrinks = images.shape[-1] > self.size
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=shrinks)
        return _pooled(self.model(pixel_values=images), self.pooling)

    @classmethod
    def pretrained(cls, **options: Any) -> tuple[Self, Options]:
        """The model in the folder options["path"]; other options replace what the folder says.

        Raises ConfigError, MissingExtra.
        """
        folder = Path(options.pop("path", "")).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(f"there is no transformers model in {str(folder)!r}: it has no config.json")
        model, config, untrained = _read_model(folder)
        found = {"config": config, **_preprocessing(folder, config)} | options
        output = _on_noise(model, found["size"], len(found["mean"]))
        found.setdefault("pooling", _choose_pooling(model, output, untrained))
        features = _pooled(output, found["pooling"])
        if not torch.allclose(features, _pooled(_on_noise(model, found["size"], len(found["mean"])), found["pooling"])):
            raise ConfigError(
                "this transformers model gives other features each time it runs, as masked autoencoders do"
            )
        found["dim"] = features.shape[1]
        return cls(model=model, **found), found


def _pooled(output: Any, pooling: Pooling) -> torch.Tensor:
    if pooling == "pooler":
        pooled: torch.Tensor = output.pooler_output
        return pooled.flatten(1)
    states: torch.Tensor = output.last_hidden_state  # (B, tokens, F), or (B, F, H, W) of a convolutional model
    if pooling == "cls":
        return states[:, 0]
    return states.mean(dim=1) if states.ndim == 3 else states.mean(dim=(2, 3))


def _choose_pooling(model: nn.Module, output: Any, untrained: Collection[str]) -> Pooling:
    """A pooler that came without weights is random: many published ViT have none."""
    trained_pooler = not any("pooler" in name for name in untrained)
    if getattr(output, "pooler_output", None) is not None and trained_pooler:
        return "pooler"
    names = [name for name, _ in model.named_parameters()]
    return "cls" if any("cls_token" in name for name in names) else "mean"


def _on_noise(model: nn.Module, size: int, channels: int) -> Any:
    side = size or 64
    try:
        with torch.inference_mode():
            noise = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))
            return model.eval()(pixel_values=noise)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            "this transformers model does not make features of images alone; "
            "choose a vision model such as DINOv2, ViT, Swin or ConvNeXt"
        ) from error


def _read_model(folder: Path) -> tuple[nn.Module, Options, Collection[str]]:
    """The model in evaluation mode, its configuration, and the names of weights that the folder lacks."""
    transformers = _transformers()
    try:
        with _quiet(transformers):
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"transformers {transformers.__version__} cannot load the model in {str(folder)!r}; it needs config.json "
            "of an architecture that transformers has itself, and model.safetensors"
        ) from error
    untrained = set(report["missing_keys"]) | {str(key) for key in report["mismatched_keys"]}
    if lacking := [name for name in sorted(untrained) if "pooler" not in name]:
        raise ConfigError(f"the model in {str(folder)!r} lacks {len(lacking)} weights, {lacking[0]!r} the first")
    config = json.loads(model.config.to_json_string(use_diff=False))
    return model, {key: value for key, value in config.items() if key not in NOT_THE_NETWORK}, untrained


def _random_model(config: Mapping[str, Any]) -> nn.Module:
    transformers = _transformers()
    try:
        with _quiet(transformers):
            model: nn.Module = transformers.AutoModel.from_config(
                transformers.AutoConfig.for_model(**config), trust_remote_code=False
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"transformers {transformers.__version__} does not know the model type {config.get('model_type')!r} as the "
            f"encoder needs it; it was made with transformers {config.get('transformers_version')}"
        ) from error
    return model.float()


def _preprocessing(folder: Path, config: Mapping[str, Any]) -> Options:
    """mean, std and size that the model was trained with, as its preprocessor_config.json says."""
    file = folder / "preprocessor_config.json"
    try:
        stated = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{str(file)!r} is not JSON") from error
    channels = int(config.get("num_channels", 3))
    size = stated.get("crop_size") if stated.get("do_center_crop") else stated.get("size")
    normalises = stated.get("do_normalize", True)
    return {
        "mean": _per_channel(stated.get("image_mean", 0.5) if normalises else 0, channels),
        "std": _per_channel(stated.get("image_std", 0.5) if normalises else 1, channels),
        "size": _side(size or config.get("image_size")),
    }


def _per_channel(value: float | Sequence[float], channels: int) -> list[float]:
    return [float(value)] * channels if isinstance(value, int | float) else [float(v) for v in value]


def _side(size: Any) -> int:
    """The side in the forms that preprocessor files use: 224, [224, 224], {"height": …}, {"shortest_edge": …}."""
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, Sequence):
        size = size[0]
    return int(size or 0)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "pretrained") from error
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and reports: what matters of them becomes an error of ours."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
