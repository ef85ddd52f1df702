"""Settings: one sentence for a person who erred."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deepmcat_core import config
from deepmcat_core.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = Field(default=0.1, gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(default=3, ge=1)
    inner: Inner = Inner()


class Checked(BaseModel):
    low: int = 1
    high: int = 2

    @field_validator("low")
    @classmethod
    def _even(cls, value: int) -> int:
        if value == 4:
            raise ValueError("DICOM has no 4")
        return value

    @model_validator(mode="after")
    def _ascend(self) -> Checked:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}")
        return self


def test_settings_are_typed_and_nested() -> None:
    """KEY=VALUE takes TOML values, dotted keys and plain words."""
    parsed = config.parse_settings(["a=3", "b.c=true", "b.d = [1, 2]", "e=words with spaces", 'f="3"'])

    assert parsed == {"a": 3, "b": {"c": True, "d": [1, 2]}, "e": "words with spaces", "f": "3"}


@pytest.mark.parametrize("setting", ["novalue", "=3", ""])
def test_malformed_settings(setting: str) -> None:
    """Something that is not KEY=VALUE is refused with what it should be."""
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        config.parse_settings([setting])


def test_value_and_section_clash() -> None:
    """A key cannot be a value and a section."""
    with pytest.raises(ConfigError, match="already a value"):
        config.parse_settings(["a=3", "a.b=4"])


def test_later_settings_win_section_by_section() -> None:
    """Flags override a file without losing what else its sections say."""
    assert config.merged({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 3}}) == {"a": 1, "b": {"c": 3, "d": 2}}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"epoch": 3}, "there is no setting 'epoch'. Did you mean 'epochs'? Known: epochs, inner."),
        ({"inner": {"rat": 3}}, "there is no setting 'inner.rat'. Did you mean 'rate'? Known: rate."),
        ({"epochs": 0}, "setting 'epochs' is 0: input should be greater than or equal to 1"),
        ({"inner": {"rate": "x"}}, "setting 'inner.rate' is 'x': input should be a valid number"),
    ],
)
def test_wrong_settings_are_explained(data: dict[str, object], sentence: str) -> None:
    """An unknown key names the near one; a bad value names the key, the value and the range."""
    with pytest.raises(ConfigError) as caught:
        config.validate(Outer, data)

    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"low": 4}, "setting 'low' is 4: DICOM has no 4"),
        ({"low": 3}, "low is 3, above high, which is 2"),
    ],
)
def test_our_own_rules_speak_for_themselves(data: dict[str, object], sentence: str) -> None:
    """The sentence of a validator stands as it is; one over several settings needs no setting's name before it."""
    with pytest.raises(ConfigError) as caught:
        config.validate(Checked, data)

    assert str(caught.value) == sentence


def test_files(tmp_path: Path) -> None:
    """A TOML file is read; a missing or malformed one gets a sentence with its path."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("epochs = 5\n[inner]\nrate = 1.5\n")
    bad.write_text("epochs = ")

    assert config.validate(Outer, config.read_file(good)) == Outer(epochs=5, inner=Inner(rate=1.5))
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        config.read_file(bad)
    with pytest.raises(ConfigError, match="No such file"):
        config.read_file(tmp_path / "missing.toml")
