"""Options that take one of a few words."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from deepmcat_core.config import suggest
from deepmcat_core.errors import ConfigError

Choice = TypeVar("Choice", bound=StrEnum)


def one_of(choices: type[Choice], word: str, option: str) -> Choice:
    """The member of `choices` that a person named. Raises ConfigError with the near one and all of them."""
    try:
        return choices(word)
    except ValueError as error:
        raise ConfigError(f"{option} is {word!r}.{suggest(word, [choice.value for choice in choices])}") from error
