"""What a run resumes from: a folder beside the artifact to come, with two files and no pickle.

    checkpoint.json            recipe, settings, seed, data set, history, and the name and SHA-256 of
    epoch-0007.safetensors     encoder (batch norm's running statistics too), objective, optimiser

The tensors are written first, under a name of their own; replacing checkpoint.json is what puts them in force. A
kill at any moment leaves the epoch before whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from deepmcat_core.durable import sync_directory, write_synced
from deepmcat_core.errors import ConfigError
from deepmcat_trainer.monitor import EpochReport

FORMAT_VERSION = 2
JSON = "checkpoint.json"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """What has to be the same for a run to go on: another value would make another run.

    final: the settings of the final stage, which may change until it runs, and are remembered until then, as is
    previous: the artifact whose categories live on.
    """

    recipe: str
    settings: dict[str, Any]
    dataset: str
    final: dict[str, Any] = field(default_factory=dict)
    previous: str | None = None

    def require_equal(self, stored: RunKey, folder: Path) -> None:
        """Raises ConfigError naming the first thing that differs from the `stored` run in `folder`."""
        way_out = f"Give what the run began with, or remove {folder} to begin anew."
        if stored.recipe != self.recipe:
            raise ConfigError(f"the run to resume is of recipe {stored.recipe!r}, not {self.recipe!r}. {way_out}")
        if stored.dataset != self.dataset:
            raise ConfigError(f"the run to resume was made from another data set. {way_out}")
        old, new = _flat(stored.settings), _flat(self.settings)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise ConfigError(
                    f"setting {key!r} is {new.get(key)!r}; the run to resume has {old.get(key)!r}. {way_out}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state after an epoch.

    encoder, objective: their state_dict. optimiser: what it remembers, by parameter (optimisers.py). history: a report
    per finished epoch.
    """

    key: RunKey
    encoder: Tensors
    objective: Tensors
    optimiser: Tensors
    history: tuple[EpochReport, ...] = field(default=())

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    def save(self, folder: Path) -> None:
        """Put this checkpoint in force in `folder` and remove the one before.

        Raises ConfigError where it cannot be written.
        """
        try:
            self._save(folder)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {folder}: {error.strerror}; make room there, and --resume goes on after the last "
                "epoch that it holds"
            ) from error

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch-{self.epoch:04d}.safetensors"
        tensors = safetensors.torch.save(self._tensors())
        _write(folder / name, tensors)
        state = {
            "format_version": FORMAT_VERSION,
            "key": asdict(self.key),
            "history": [asdict(report) for report in self.history],
            "tensors": name,
            "sha256": hashlib.sha256(tensors).hexdigest(),
        }
        _write(folder / JSON, json.dumps(state, indent=1).encode())
        for old in folder.glob("epoch-*.safetensors"):
            if old.name != name:
                old.unlink()

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """The checkpoint in force in `folder`. Raises ConfigError where it is damaged."""
        try:
            state = _read(folder)
            content = (folder / Path(state["tensors"]).name).read_bytes()
            if hashlib.sha256(content).hexdigest() != state["sha256"]:
                raise ValueError("digest")
            tensors: Tensors = safetensors.torch.load(content)
            return cls(
                key=RunKey(**state["key"]),
                encoder=_section(tensors, "encoder"),
                objective=_section(tensors, "objective"),
                optimiser=_section(tensors, "optimiser"),
                history=tuple(EpochReport(**report) for report in state["history"]),
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise _damaged(folder) from error

    def _tensors(self) -> Tensors:
        sections = {"encoder": self.encoder, "objective": self.objective, "optimiser": self.optimiser}
        tensors = {f"{section}/{name}": value for section, part in sections.items() for name, value in part.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def exists(folder: Path) -> bool:
    """Whether `folder` holds a run that can be resumed."""
    return (folder / JSON).is_file()


def read_key(folder: Path) -> RunKey:
    """What the run in `folder` is of. Raises ConfigError where it is damaged."""
    try:
        return RunKey(**_read(folder)["key"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder) from error


def remove(folder: Path) -> None:
    """Remove the run; its artifact is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / JSON).read_bytes())
    if state["format_version"] != FORMAT_VERSION:
        raise ConfigError(f"the run in {folder} is of another release; remove it to begin anew")
    return state


def _damaged(folder: Path) -> ConfigError:
    return ConfigError(f"the run in {folder} is damaged and cannot be resumed; remove it to begin anew")


def _section(tensors: Tensors, name: str) -> Tensors:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _write(path: Path, content: bytes) -> None:
    """Write durably, and so that the name holds either the old content or the new."""
    temporary = path.with_name(f".{path.name}.partial")
    write_synced(temporary, content)
    temporary.replace(path)
    sync_directory(path.parent)
