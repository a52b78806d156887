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

from runtime.errors import ConfigError
from tests.helpers.tiny_runs import TINY, one_sentence
from training.config import RunConfig, TrainConfig, merge_flags, read_toml, take_epochs
from training.models.model_sizes import model_config


def _values(field: dataclasses.Field[Any], kind: type) -> st.SearchStrategy[Any]:
    limits = field.metadata
    if optional := [part for part in typing.get_args(kind) if part is not type(None)]:
        return st.none() | _values(field, optional[0])
    if "choices" in limits:
        return st.sampled_from(limits["choices"])
    least = limits.get("least", limits.get("above", 0))
    if kind is int:
        return st.integers(least, 2**63 - 1)
    if kind is float:
        return st.floats(
            least,
            limits.get("most", limits.get("below")),
            exclude_min="above" in limits,
            exclude_max="below" in limits,
            allow_nan=False,
            allow_infinity=False,
        )
    if kind is str:
        return st.sampled_from({"background": ["white", "#10ff80", "rgb(1, 2, 3)"], "init": ["", "a run"]}[field.name])
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
    file = tmp_path / "run.toml"
    file.write_bytes(b'data = "\xff"')
    with pytest.raises(ConfigError, match="not TOML"):
        read_toml(file)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"preset": "mar_base"}, "here: the key preset is now model, or name within the table model"),
        ({"training": {"steps": 1, "attention": "bf16"}}, "here, training: the key attention is now attention_preci"),
        ({"model": {**TINY.to_dict(), "codes": 512}}, "here, model: the key codes is now codebook_size"),
        ({"model": {**TINY.to_dict(), "head": "codes"}}, 'here, model: head = "codes" is now head = "vq"'),
    ],
)
def test_the_error_about_an_old_key_names_the_new_one(changes: dict[str, Any], line: str) -> None:
    config = RunConfig("somewhere", TINY, TrainConfig(steps=1)).to_dict() | changes
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(config, "here")
    assert one_sentence(caught).startswith(line)


def test_a_background_that_is_no_colour_is_refused() -> None:
    with pytest.raises(ConfigError, match="background must be a colour such as white or #808080, found 'nope'"):
        TrainConfig(steps=1, background="nope")


def test_a_model_is_the_name_of_a_size_or_a_table_that_may_change_one() -> None:
    training = {"steps": 1}
    named = RunConfig.from_dict({"data": "d", "model": "mar_large", "training": training}, "here")
    assert named.model == model_config("mar_large")
    table = {"name": "mar_large", "img_size": 128}
    changed = RunConfig.from_dict({"data": "d", "model": table, "training": training}, "here")
    assert changed.model == model_config("mar_large", img_size=128)


@pytest.mark.parametrize(
    ("steps", "given", "warmup"), [(5, None, 0), (300, None, 30), (9000, None, 500), (300, 7, 7), (300, 0, 0)]
)
def test_the_warm_up_is_a_tenth_of_the_run_and_at_most_500_steps(steps: int, given: int | None, warmup: int) -> None:
    assert TrainConfig(steps=steps, warmup_steps=given).warmup == warmup


def test_the_learning_rate_is_that_of_the_size_unless_it_is_set() -> None:
    for model, training, expected in (
        ("pixel_small", {}, 2e-3),
        ("pixel_small", {"learning_rate": 3e-5}, 3e-5),
        ("mar_base", {}, 1e-4),
    ):
        values = {"data": "d", "model": model, "training": {"steps": 1, **training}}
        assert RunConfig.from_dict(values, "here").training.learning_rate == expected


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ({"steps": 9, "seed": 1}, {"epochs": 2}, {"seed": 1, "epochs": 2}),
        ({"epochs": 9}, {"steps": 2}, {"steps": 2}),
        ({"epochs": 9}, {"seed": 3}, {"epochs": 9, "seed": 3}),
    ],
)
def test_the_length_of_a_run_on_the_command_line_replaces_that_of_the_file(
    tmp_path: pathlib.Path, file: dict[str, int], flags: dict[str, int], expected: dict[str, int]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[training]\n" + "".join(f"{name} = {value}\n" for name, value in file.items()))
    assert merge_flags(path, None, None, {}, flags)["training"] == expected


def test_steps_and_epochs_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="here, training: steps and epochs both say how long") as caught:
        take_epochs({"training": {"steps": 3, "epochs": 1}}, "here")
    one_sentence(caught)
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(ConfigError, match="here: epochs must be a whole number of at least 1") as caught:
            take_epochs({"training": {"epochs": wrong}}, "here")
        one_sentence(caught)


def test_flags_replace_the_values_of_a_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('data = "a"\nmodel = "mar_base"\n[training]\nsteps = 3\nseed = 4\n')
    assert merge_flags(file, "b", None, {"img_size": 128}, {"steps": 5}) == {
        "data": "b",
        "model": {"name": "mar_base", "img_size": 128},
        "training": {"steps": 5, "seed": 4},
    }
    assert merge_flags(file, None, "mar_large", {}, {})["model"] == {"name": "mar_large"}
