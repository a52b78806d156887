"""The config of a run: every value comes back from TOML and from JSON."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tiny_runs import TINY
from training.config import RunConfig, TrainConfig, read_toml


def _values(field: dataclasses.Field[Any], kind: type) -> st.SearchStrategy[Any]:
    limits = field.metadata
    if "choices" in limits:
        return st.sampled_from(limits["choices"])
    least = limits.get("least", limits.get("above", 0))
    if kind is int:
        return st.integers(least, 2**63 - 1)
    if kind is float:
        above = {"exclude_min": True} if "above" in limits else {}
        below = {"max_value": limits["below"], "exclude_max": True} if "below" in limits else {}
        return st.floats(least, allow_nan=False, allow_infinity=False, **above, **below)
    assert kind is bool
    return st.booleans()


_TYPES = typing.get_type_hints(TrainConfig)
_TRAINING = st.fixed_dictionaries(
    {field.name: _values(field, _TYPES[field.name]) for field in dataclasses.fields(TrainConfig)}
)
_PATHS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(_PATHS, _TRAINING)
def test_a_config_is_the_same_after_toml_and_json(
    tmp_path_factory: pytest.TempPathFactory, data: str, training: dict[str, Any]
) -> None:
    config = RunConfig(data, TINY, TrainConfig(**training))
    file = tmp_path_factory.getbasetemp() / "config.toml"
    file.write_bytes(config.to_toml().encode())
    assert RunConfig.from_dict(read_toml(file), "here") == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict())), "here") == config


def test_an_integer_is_accepted_for_a_float() -> None:
    config = TrainConfig(steps=1, learning_rate=1)
    assert type(config.learning_rate) is float


def test_the_error_about_a_config_that_is_no_text_names_the_path(tmp_path: pathlib.Path) -> None:
    from runtime.errors import ConfigError

    file = tmp_path / "run.toml"
    file.write_bytes(b'data = "\xff"')
    with pytest.raises(ConfigError, match="not TOML"):
        read_toml(file)
