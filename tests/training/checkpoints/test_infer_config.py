"""The config of a published model: inferred from its tensors, completed by other sources, never against the tensors."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointError, ConfigError
from runtime.model.config import ModelConfig
from tests.helpers.formula_weights import FULL
from tests.helpers.published_forms import CONFIG, HEADS, LAYOUT, VAE, mar_shapes
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.infer_config import (
    PartialConfig,
    config_from_size_name,
    configs_from_arguments,
    infer_config,
    merge_configs,
)
from training.checkpoints.published_files import config_from_vae
from training.models.autoencoder import AutoencoderKL
from training.models.model_sizes import model_config

_SHAPES = mar_shapes(CONFIG)
_BASE = {name: tuple(shape) for name, shape in json.loads((FULL / "mar_base_parameters.json").read_text()).items()}
_FILE = "--config shape.json"
_TOLD_BY_TENSORS = (
    *("class_num", "buffer_size", "diffloss_d", "diffloss_w"),
    *(f"{half}_{size}" for half in ("encoder", "decoder") for size in ("embed_dim", "depth")),
)


def _config(*configs: PartialConfig, shapes: dict[str, tuple[int, ...]] = _SHAPES) -> ModelConfig:
    return infer_config(list(configs), shapes, "x.pth")


def _from_file(**values: Any) -> PartialConfig:
    return PartialConfig(_FILE, {**HEADS, **LAYOUT, **values})


# What is worked out


@st.composite
def _configs(draw: st.DrawFn, ratios: st.SearchStrategy[float], width: int) -> ModelConfig:
    """Any config of a small model, its widths multiples of `width`."""

    def number(largest: int) -> int:
        return draw(st.integers(1, largest))

    heads = {"encoder": number(3), "decoder": number(3)}
    stride, patch = number(3), number(3)
    return ModelConfig(
        img_size=stride * patch * number(4),
        vae_stride=stride,
        patch_size=patch,
        vae_embed_dim=number(5),
        class_num=number(7),
        buffer_size=number(6),
        diffloss_d=number(3),
        diffloss_w=number(12),
        mlp_ratio=draw(ratios),
        mask_ratio_min=draw(st.floats(0, 0.999)),
        attn_dropout=draw(st.floats(0, 0.99)),
        diffusion_batch_mul=number(4),
        **{f"{half}_num_heads": count for half, count in heads.items()},
        **{f"{half}_embed_dim": count * width * number(9) for half, count in heads.items()},
        **{f"{half}_depth": number(3) for half in heads},
    )


@given(_configs(st.floats(1, 16), width=1))
@settings(max_examples=30)
def test_a_complete_config_is_returned_unchanged(config: ModelConfig) -> None:
    assert _config(PartialConfig(_FILE, config.to_dict()), shapes=mar_shapes(config)) == config


@given(_configs(st.sampled_from([0.25, 0.5, 1.0, 2.75, 4.0]), width=4))
@settings(max_examples=30)
def test_tensors_determine_all_fields_but_heads_patches_and_those_of_training(config: ModelConfig) -> None:
    untold = ("encoder_num_heads", "decoder_num_heads", "vae_stride", "patch_size")
    in_training = ("mask_ratio_min", "attn_dropout", "diffusion_batch_mul")
    complete = PartialConfig(_FILE, {name: getattr(config, name) for name in (*untold, *in_training)})
    assert _config(complete, shapes=mar_shapes(config)) == config


@given(st.integers(1, 400), st.data())
@settings(max_examples=100)
def test_the_inferred_mlp_ratio_gives_the_width_of_the_tensors(width: int, data: Any) -> None:
    hidden = data.draw(st.integers(-(-width // 4), 16 * width))  # what a config allows
    shapes = {**_SHAPES, "z_proj.weight": (width, 16), "encoder_blocks.0.mlp.fc1.weight": (hidden, width)}
    config = _config(PartialConfig(_FILE, {"encoder_num_heads": 1, "decoder_num_heads": 1}), shapes=shapes)
    assert int(config.encoder_embed_dim * config.mlp_ratio) == hidden  # as training.models.mar has it


def test_the_published_parameters_alone_determine_the_published_model() -> None:
    assert _config(shapes=_BASE) == model_config("mar_base")


@pytest.mark.parametrize("name", ["mar_base", "mar_large", "mar_huge"])
def test_a_published_size_has_its_published_heads(name: str) -> None:
    shapes = mar_shapes(model_config(name))
    assert _config(shapes=shapes) == model_config(name)
    assert _config(config_from_size_name(name, f"--model {name}"), shapes=shapes) == model_config(name)


@pytest.mark.parametrize("changed", [{"diffloss_d": 3, "diffloss_w": 1024}, {"class_num": 10}, {"img_size": 512}])
def test_a_size_name_gives_neither_the_head_nor_the_classes_nor_the_image_size(changed: dict[str, int]) -> None:
    config = model_config("mar_base", **changed)
    assert _config(config_from_size_name("mar_base", "--model mar_base"), shapes=mar_shapes(config)) == config


def test_the_autoencoder_determines_the_layout_of_tokens() -> None:
    """Its 4 channels and the 16 values of a token make patches of 2x2, and its stride the size of the image."""
    tokenizer = config_from_vae(AutoencoderKL(VAE), pathlib.Path("vae.ckpt"))
    assert _config(PartialConfig(_FILE, HEADS), tokenizer) == CONFIG
    assert (CONFIG.token_channels, CONFIG.patch_size) == (16, 2)


def test_without_another_source_the_layout_is_the_published_one() -> None:
    config = _config(PartialConfig(_FILE, HEADS))
    assert (config.patch_size, config.vae_stride, config.vae_embed_dim, config.img_size) == (1, 16, 16, 32)


def test_arguments_that_are_not_of_the_model_are_ignored() -> None:
    arguments = {"lr": 1e-4, "batch_size": 64, "output_dir": "/x", "model": "mar_of_mine", "num_sampling_steps": "100"}
    assert _config(*configs_from_arguments({**arguments, **HEADS, **LAYOUT})) == CONFIG


@pytest.mark.parametrize("name", [["mar_base"], {"mar_base": 1}, None, 5, "mar", ""])
def test_a_model_argument_that_is_no_size_name_is_ignored(name: object) -> None:
    assert _config(*configs_from_arguments({"model": name, **HEADS, **LAYOUT})) == CONFIG


# Contradictions

_NAME = "the name mar_base it was trained under"
_ARGUMENTS = "the arguments it was trained with"
_PAIRS: dict[str, tuple[list[PartialConfig], list[str]]] = {
    "tensors-arguments": (
        configs_from_arguments({**HEADS, **LAYOUT, "class_num": 6}),
        ["5 by its tensors", "6", _ARGUMENTS],
    ),
    "tensors-name": (configs_from_arguments({**LAYOUT, "model": "mar_base"}), ["24 by its tensors", "768", _NAME]),
    "tensors-model": (
        [config_from_size_name("mar_base", "--model mar_base")],
        ["24 by its tensors", "768", "--model mar_base"],
    ),
    "tensors-config": ([_from_file(diffloss_w=41)], ["40 by its tensors", "41", _FILE]),
    "tensors-tokenizer": (
        [PartialConfig(_FILE, HEADS), PartialConfig("the tokenizer vae.ckpt", {"vae_embed_dim": 5, "vae_stride": 4})],
        ["tokens of 16 values", "its tensors", "vae_embed_dim 5", "the tokenizer vae.ckpt"],
    ),
    "arguments-config": (
        [*configs_from_arguments(LAYOUT), _from_file(vae_stride=8)],
        ["vae_stride is 4", _ARGUMENTS, "8", _FILE],
    ),
    "arguments-tokenizer": (
        [*configs_from_arguments({**HEADS, **LAYOUT}), PartialConfig("the tokenizer vae.ckpt", {"vae_stride": 8})],
        ["vae_stride is 4", _ARGUMENTS, "8", "the tokenizer vae.ckpt"],
    ),
    "config-tokenizer": (
        [_from_file(), PartialConfig("the tokenizer vae.ckpt", {"vae_embed_dim": 16})],
        ["vae_embed_dim is 4", _FILE, "16", "the tokenizer vae.ckpt"],
    ),
}


@pytest.mark.parametrize("pair", _PAIRS)
def test_a_contradiction_names_both_sources_and_both_values(pair: str) -> None:
    configs, parts = _PAIRS[pair]
    with pytest.raises(ConfigError) as caught:
        _config(*configs)
    message = one_sentence(caught)
    for part in ("x.pth", *parts):
        assert part in message


# Their tensors are those of a published model, so that it is the heads they contradict each other in.
_PAIRS_OF_BASE: dict[str, tuple[list[PartialConfig], list[str]]] = {
    "arguments-name": (
        configs_from_arguments({"model": "mar_base", "encoder_num_heads": 16}),
        ["encoder_num_heads is 16", _ARGUMENTS, "12", _NAME],
    ),
    "arguments-model": (
        [*configs_from_arguments({"encoder_num_heads": 16}), config_from_size_name("mar_base", "--model mar_base")],
        ["encoder_num_heads is 16", _ARGUMENTS, "12", "--model mar_base"],
    ),
    "name-config": (
        [*configs_from_arguments({"model": "mar_base"}), PartialConfig(_FILE, {"decoder_num_heads": 6})],
        ["decoder_num_heads is 12", _NAME, "6", _FILE],
    ),
    "model-config": (
        [config_from_size_name("mar_base", "--model mar_base"), PartialConfig(_FILE, {"decoder_num_heads": 6})],
        ["decoder_num_heads is 12", "--model mar_base", "6", _FILE],
    ),
}


@pytest.mark.parametrize("pair", _PAIRS_OF_BASE)
def test_a_contradiction_in_heads_names_both_sources_and_both_values(pair: str) -> None:
    configs, parts = _PAIRS_OF_BASE[pair]
    with pytest.raises(ConfigError) as caught:
        _config(*configs, shapes=_BASE)
    message = one_sentence(caught)
    for part in ("x.pth", *parts):
        assert part in message


def test_a_contradiction_of_two_size_names_names_both() -> None:
    with pytest.raises(ConfigError) as caught:
        merge_configs(
            [*configs_from_arguments({"model": "mar_base"}), config_from_size_name("mar_huge", "--model mar_huge")],
            "x.pth",
        )
    message = one_sentence(caught)
    for part in ("x.pth", _NAME, "768", "--model mar_huge", "1280"):
        assert part in message


@pytest.mark.parametrize("field", _TOLD_BY_TENSORS)
def test_no_source_may_contradict_a_field_of_the_tensors(field: str) -> None:
    value = getattr(CONFIG, field)
    with pytest.raises(ConfigError) as caught:
        _config(_from_file(**{field: value + 1}))
    assert f"{field} is {value} by its tensors, but {value + 1} by {_FILE}" in one_sentence(caught)


@pytest.mark.parametrize(
    ("field", "value", "actual", "makes"),
    [
        ("img_size", 24, "position embeddings of 4 tokens", 9),
        ("vae_stride", 8, "position embeddings of 4 tokens", 1),
        ("patch_size", 1, "position embeddings of 4 tokens", 16),
        ("vae_embed_dim", 3, "tokens of 16 values", 12),
        ("mlp_ratio", 3, "feed-forward layers of 48 values", 72),
    ],
)
def test_the_error_about_a_layout_that_the_tensors_do_not_have_names_both_sizes_and_the_source(
    field: str, value: int, actual: str, makes: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(_from_file(**{field: value}))
    message = one_sentence(caught)
    assert actual in message
    assert message.endswith(f"makes {makes}")
    assert re.search(rf"{field} {value}(\.0)? \(by {_FILE}\)", message)


def test_a_number_of_tokens_that_is_no_square_is_refused() -> None:
    shapes = {**_SHAPES, "diffusion_pos_embed_learned": (1, 5, 32), "encoder_pos_embed_learned": (1, 8, 24)}
    with pytest.raises(ConfigError, match="embeddings of 5 tokens") as caught:
        _config(PartialConfig(_FILE, HEADS), shapes=shapes)
    one_sentence(caught)


def test_equal_numbers_of_different_types_are_no_contradiction() -> None:
    assert _config(_from_file(mlp_ratio=2, class_num=5.0)) == CONFIG


# What is missing or impossible


def test_missing_heads_are_requested() -> None:
    with pytest.raises(ConfigError, match=r"heads.*--model-config.*encoder_num_heads and decoder_num_heads") as caught:
        _config(PartialConfig(_FILE, LAYOUT))
    assert "x.pth" in one_sentence(caught)


@pytest.mark.parametrize("field", HEADS)
def test_heads_of_the_encoder_do_not_determine_those_of_the_decoder(field: str) -> None:
    with pytest.raises(ConfigError, match="heads"):
        _config(PartialConfig(_FILE, {field: HEADS[field]}))


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_num_heads": "3"},
        {"encoder_num_heads": 0},
        {"vae_stride": "4"},
        {"vae_stride": 4.0},
        {"vae_stride": True},
        {"patch_size": 0},
        {"patch_size": -2},
        {"vae_embed_dim": None},
        {"vae_embed_dim": [4]},
        {"vae_embed_dim": {}},
        {"img_size": 17},
        {"img_size": "16"},
        {"class_num": "5"},
        {"class_num": [5]},
        {"mlp_ratio": "2"},
        {"mlp_ratio": float("nan")},
        {"mask_ratio_min": 2.0},
        {"attn_dropout": None},
        {"diffusion_batch_mul": 1.5},
    ],
    ids=str,
)
def test_the_error_about_an_impossible_value_names_field_and_source(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(_from_file(**values))
    message = one_sentence(caught)
    for part in ("x.pth", *values, _FILE):
        assert part in message


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="24 is not a multiple of its 5 heads") as caught:
        _config(_from_file(encoder_num_heads=5))
    message = one_sentence(caught)
    assert "x.pth" in message
    assert _FILE in message


def test_unknown_keys_are_reported_with_their_source_before_missing_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        _config(*configs_from_arguments(LAYOUT), PartialConfig(_FILE, {"depth": 2, "vae_strid": 16}))
    assert f"x.pth, {_FILE}: unknown model config keys depth, vae_strid;" in one_sentence(caught)


def test_the_error_about_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'mar_tiny'.*mar_base, mar_large, mar_huge") as caught:
        config_from_size_name("mar_tiny", "--model mar_tiny")
    one_sentence(caught)


_NEEDED = (
    *("class_emb.weight", "encoder_pos_embed_learned", "diffusion_pos_embed_learned", "z_proj.weight"),
    *("decoder_embed.weight", "encoder_blocks.0.mlp.fc1.weight", "diffloss.net.input_proj.weight"),
)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, shape) for name in _NEEDED for shape in (None, (), (0,), (0, 0), (0, 0, 0))),
        *((name, (7,)) for name in _NEEDED[1:4]),  # of which the second number counts
    ],
)
def test_the_error_about_parameters_of_another_model_names_one_of_them(
    name: str, shape: tuple[int, ...] | None
) -> None:
    shapes = {key: value for key, value in _SHAPES.items() if key != name}
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(CheckpointError, match=r"x\.pth: not the parameters of a MAR model") as caught:
        _config(_from_file(), shapes=shapes)
    assert f"{name} is {'missing' if shape is None else f'of shape {shape}'}" in one_sentence(caught)


def test_parameters_of_no_model_at_all_are_refused() -> None:
    for shapes in ({}, {"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)}):
        with pytest.raises(CheckpointError, match="not the parameters of a MAR model") as caught:
            _config(shapes=shapes)
        one_sentence(caught)


@given(st.lists(st.integers(0, 40), max_size=4), st.sampled_from(sorted(_SHAPES)))
@settings(max_examples=80)
def test_any_changed_shape_gives_a_config_or_a_one_line_error(shape: list[int], name: str) -> None:
    """Whether the parameter fits is for `fill` to say; here nothing may break."""
    try:
        _config(_from_file(), shapes={**_SHAPES, name: tuple(shape)})
    except (CheckpointError, ConfigError) as error:
        assert str(error).isprintable()
        assert "x.pth" in str(error)
