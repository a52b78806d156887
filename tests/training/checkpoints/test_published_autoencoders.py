"""Published autoencoders: every format gives the same weights, and one that does not fit the model is refused."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, ConfigError
from tests.helpers.published_forms import (
    CONFIG,
    HEADS,
    VAE,
    mar_weights,
    same_weights,
    vae_weights,
    write_component,
    write_json,
    write_pipeline,
    write_pth,
    write_safetensors,
)
from tests.helpers.published_models import refusal, write_vae_checkpoint
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import load_vae


def _vae_safetensors(folder: pathlib.Path, weights: Any) -> pathlib.Path:
    return write_safetensors(folder / "kl.safetensors", weights)


def _vae_folder(folder: pathlib.Path, weights: Any) -> pathlib.Path:
    return write_component(folder / "vae", weights, {"latent_channels": 4})


def _vae_shards(folder: pathlib.Path, weights: Any) -> pathlib.Path:
    return write_component(folder / "vae", weights, {"latent_channels": 4}, shards=2)


@pytest.mark.parametrize("write", [write_vae_checkpoint, _vae_safetensors, _vae_folder, _vae_shards])
def test_every_format_of_an_autoencoder_gives_all_its_weights(
    tmp_path: pathlib.Path, write: Callable[..., Any]
) -> None:
    path = write(tmp_path, vae_weights())
    vae = load_vae(path)
    assert vae.config == VAE
    assert same_weights(vae, vae_weights())
    # A .pth that tells no layout takes it from the autoencoder.
    torch.save({"model_ema": mar_weights()}, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth", write_json(tmp_path / "heads.json", HEADS), tokenizer=path)
    assert loaded.model.config == CONFIG
    assert loaded.tokenizer == "kl"


@pytest.mark.parametrize("write", [write_vae_checkpoint, _vae_safetensors])
def test_the_weights_of_an_autoencoders_loss_are_ignored(tmp_path: pathlib.Path, write: Callable[..., Any]) -> None:
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.full((64, 3, 4, 4), torch.nan)}
    assert same_weights(load_vae(write(tmp_path, {**vae_weights(), **loss})), vae_weights())


def test_other_content_beside_the_weights_of_an_autoencoder_is_ignored(tmp_path: pathlib.Path) -> None:
    file = write_vae_checkpoint(tmp_path, vae_weights(), epoch=12, optimizer={"state": [torch.zeros(3)]})
    assert same_weights(load_vae(file), vae_weights())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"latent_channels": 16}, ["tokens of 16 values", "vae_embed_dim 16", "makes 64"]),
        ({"latent_channels": 3}, ["tokens of 16 values", "vae_embed_dim 3"]),
    ],
)
def test_an_autoencoder_with_other_latents_contradicts_the_tensors_of_the_model(
    tmp_path: pathlib.Path, change: dict[str, Any], expected: list[str]
) -> None:
    vae = write_vae_checkpoint(tmp_path, vae_weights(dataclasses.replace(VAE, **change)))
    file = write_safetensors(tmp_path / "mar.safetensors", mar_weights())
    config = write_json(tmp_path / "shape.json", {**HEADS, "patch_size": 2, "vae_stride": 4, "img_size": 16})
    message = refusal(file, ConfigError, config_file=config, tokenizer=vae)
    for part in (str(file), "its tensors", f"the tokenizer {vae}", *expected):
        assert part in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"latent_channels": 16}, "vae_embed_dim is 4 by the arguments it was trained with, but 16 by the tokenizer"),
        ({"multipliers": (1, 2)}, "vae_stride is 4 by the arguments it was trained with, but 2 by the tokenizer"),
    ],
)
def test_an_autoencoder_of_another_model_contradicts_the_arguments_of_training(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, change: dict[str, Any], expected: str
) -> None:
    vae = write_vae_checkpoint(tmp_path, vae_weights(dataclasses.replace(VAE, attention_levels=(), **change)))
    file = write_pth(tmp_path / "x.pth", mar_weights())
    message = refusal(file, ConfigError, config_file=heads_file, tokenizer=vae)
    for part in (str(file), f"{expected} {vae}"):
        assert part in message


def test_a_pipeline_folder_whose_parts_contradict_each_other_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline")
    write_component(folder / "vae", vae_weights(dataclasses.replace(VAE, latent_channels=8)), {})
    message = refusal(folder, ConfigError)
    assert (
        f"vae_embed_dim is 4 by the arguments it was trained with, but 8 by the tokenizer {folder / 'vae'}" in message
    )


def test_an_autoencoder_of_another_width_is_loaded(tmp_path: pathlib.Path) -> None:
    wide = dataclasses.replace(VAE, width=64)
    assert load_vae(write_vae_checkpoint(tmp_path, vae_weights(wide))).config == wide


@pytest.mark.parametrize(
    "name", ["decoder.up.1.block.0.conv1.weight", "encoder.mid.attn_1.q.weight", "quant_conv.bias"]
)
def test_the_error_about_an_autoencoder_names_the_layer_of_another_width(tmp_path: pathlib.Path, name: str) -> None:
    weights = vae_weights()
    weights[name] = torch.cat([weights[name], weights[name]])
    file = write_vae_checkpoint(tmp_path, weights)
    with pytest.raises(CheckpointError, match=rf"{name} is \(\d+.* config requires \(\d+") as caught:
        load_vae(file)
    assert str(file) in one_sentence(caught)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_autoencoder_with_weights_that_are_not_finite_is_refused(tmp_path: pathlib.Path, value: float) -> None:
    weights = vae_weights()
    weights["decoder.conv_in.bias"][3] = value
    with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.bias.*not finite") as caught:
        load_vae(write_vae_checkpoint(tmp_path, weights))
    one_sentence(caught)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"model": None},
        {"model": [torch.zeros(1)]},
        {"model": {"w": 1.0}},
        {"model": {1: torch.ones(1)}},
    ],
    ids=["elsewhere", "null", "list", "numbers", "no-names"],
)
def test_a_ckpt_without_weights_under_model_is_refused(tmp_path: pathlib.Path, content: object) -> None:
    file = tmp_path / "kl.ckpt"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="autoencoder under 'model'") as caught:
        load_vae(file)
    assert str(file) in one_sentence(caught)


def test_an_autoencoder_as_model_and_a_model_as_autoencoder_are_refused(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path
) -> None:
    model = write_safetensors(tmp_path / "mar.safetensors", mar_weights())
    vae = write_safetensors(tmp_path / "vae.safetensors", vae_weights())
    message = refusal(model, config_file=arguments_file, tokenizer=model)
    assert f"{model}: not a KL autoencoder under the published parameter names" in message
    assert "encoder.conv_in.weight" in message
    assert f"{vae}: not the parameters of a MAR model" in refusal(vae, config_file=arguments_file)


def test_a_missing_autoencoder_is_refused(tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights())
    for name in ("nowhere.ckpt", "nowhere.safetensors"):
        assert str(tmp_path / name) in refusal(file, config_file=heads_file, tokenizer=tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(file, config_file=heads_file, tokenizer=tmp_path / "empty")
