"""The config of a tokenizer's training run."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from runtime.errors import ConfigError
from tests.helpers.tiny_runs import (
    one_sentence,
    tiny_tokenizer,
)
from training.config import read_toml
from training.tokenizer.config import TokenizerConfig

_SIZE = 16


def test_a_config_written_as_toml_is_read_back(tmp_path: pathlib.Path) -> None:
    config = tiny_tokenizer(pathlib.Path("images"), 7, perceptual="none")
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert TokenizerConfig.from_dict(read_toml(tmp_path / "run.toml"), "run.toml") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"width": 40}}, "width that is a multiple of 32"),
        ({"model": {"width": 40, "norm_groups": 16}}, "width that is a multiple of 16"),
        ({"model": {"norm_groups": 0}}, "norm_groups must be a whole number"),
        ({"model": {"linear_path": 1}}, "linear_path must be true or false"),
        (
            {"model": {"linear_path": True, "multipliers": [1], "attention_levels": [], "latent_channels": 4}},
            "latent_channels must be at most the 3 values of a patch, found 4",
        ),
        ({"model": {"depth": 4}}, "unknown keys depth"),
        ({"model": {"blocks": 0}}, "blocks must be a whole number"),
        ({"model": {"multipliers": "12"}}, "multipliers must be a list of whole numbers"),
        ({"model": {"attention_levels": [7]}}, "attention_levels must be below"),
        ({"training": {"steps": 1, "image_size": 30}}, "image_size must be a multiple of 16"),
        ({"training": {"steps": 1, "image_size": 16}}, "too small for 3 discriminator_layers"),
        ({"training": {"steps": 1, "discriminator_width": 12}}, "discriminator_width must be a multiple of 8"),
        ({"training": {"steps": 1, "eval_count": 1}}, "eval_count must be a whole number"),
        ({"training": {}}, "steps is missing"),
        ({"model": "kl3"}, "model must be one of kl16"),
    ],
)
def test_an_impossible_config_is_one_line(values: dict[str, Any], message: str) -> None:
    complete = {"data": "somewhere", "model": "kl16", "training": {"steps": 1}, **values}
    with pytest.raises(ConfigError) as caught:
        TokenizerConfig.from_dict(complete, "run.toml")
    assert message in one_sentence(caught)
