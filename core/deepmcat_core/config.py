"""Settings from files and the command line, checked with one sentence for a person."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deepmcat_core.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

_OUR_OWN = "Value error, "  # what pydantic puts before the sentence of a ValueError that a validator of ours raises


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence for an unknown word: the near one, and all that are known."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{meant} Known: {', '.join(known)}."


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not TOML: {error}") from error


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["epochs=5", "final.k=64"]` as nested data; values are TOML where they parse as it, else text."""
    data: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, not {setting!r}")
        *path, last = key.strip().split(".")
        target = data
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {key}: {part!r} is already a value")
        target[last] = _value(value.strip())
    return data


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in it, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def validate(model: type[Model], data: Mapping[str, Any]) -> Model:
    """`data` as a `model` (which forbids extra keys). Raises ConfigError naming key, value, range and the near key."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(_sentence(model, error)) from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    *path, key = [str(part) for part in first["loc"]] or [""]
    if first["type"] == "extra_forbidden":
        return f"there is no setting {'.'.join([*path, key])!r}.{suggest(key, _known(model, path))}"
    message = _uncapitalised(first["msg"].removeprefix(_OUR_OWN))
    if not first["loc"]:  # what several settings have to be together
        return message
    return f"setting {'.'.join([*path, key])!r} is {first['input']!r}: {message}"


def _uncapitalised(message: str) -> str:
    """The sentence as it goes on after a colon; a word all in capitals stays."""
    return message if message[:2].isupper() else message[:1].lower() + message[1:]


def _known(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
