"""Checkpoints of runs: weights, classes, tokenizer, and the step they were saved at."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import CheckpointError, ConfigError
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.published_forms import CONFIG, VAE, mar_weights, same_weights, vae_weights
from tests.helpers.published_models import write_tiny_run
from tests.helpers.tiny_runs import TINY, one_sentence, randomized
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.tensor_files import read_safetensors
from training.models.mar import MAR

_SMALL = GOLDEN / "small"


def test_a_run_folder_gives_its_weights_classes_and_tokenizer(tmp_path: pathlib.Path) -> None:
    loaded = load_checkpoint(write_tiny_run(tmp_path / "run"))
    expected = randomized(MAR(**TINY.to_dict())).state_dict()
    assert loaded.model.config == TINY
    assert all(torch.equal(expected[name], value) for name, value in loaded.model.state_dict().items())
    assert (loaded.tokenizer, loaded.class_names, loaded.source) == ("pixel", ("a", "b", "c"), "run")


def test_a_run_folder_takes_no_config(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="--model-config") as caught:
        load_checkpoint(write_tiny_run(tmp_path / "run"), _SMALL / "meta.json")
    one_sentence(caught)


def test_a_run_folder_takes_no_name(tmp_path: pathlib.Path) -> None:
    run = write_tiny_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="--model") as caught:
        load_checkpoint(run, name="mar_base")
    assert str(run) in one_sentence(caught)


def test_a_folder_that_is_no_run_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in one_sentence(caught)


def test_a_run_without_weights_is_refused(tmp_path: pathlib.Path) -> None:
    run = write_tiny_run(tmp_path / "run")
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        load_checkpoint(run)
    one_sentence(caught)


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99])
def test_truncated_weights_of_a_run_are_refused(tmp_path: pathlib.Path, percent: int) -> None:
    run = write_tiny_run(tmp_path / "run")
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(CheckpointError, match=r"copy it again$") as caught:  # it has no state to go on from
        load_checkpoint(run)
    assert str(run / "model.safetensors") in one_sentence(caught)


def test_weights_of_a_run_without_their_hash_are_refused(tmp_path: pathlib.Path) -> None:
    """A damaged header can lose the hash; altered weights would then be believed."""
    weights = write_tiny_run(tmp_path / "run") / "model.safetensors"
    save_file(read_safetensors(weights), weights, {"step": "7"})
    with pytest.raises(CheckpointError, match="carries no hash of its content") as caught:
        load_checkpoint(tmp_path / "run")
    assert str(weights) in one_sentence(caught)


@pytest.mark.parametrize("key", ["model", "tokenizer", "class_names"])
def test_the_error_about_a_run_config_names_the_missing_key(tmp_path: pathlib.Path, key: str) -> None:
    run = write_tiny_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config[key]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=key) as caught:
        load_checkpoint(run)
    assert str(run / "config.json") in one_sentence(caught)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", []),
        ("model", {**TINY.to_dict(), "depth": 3}),
        ("model", {**TINY.to_dict(), "img_size": 13}),
        ("tokenizer", None),
        ("tokenizer", ["kl"]),
        ("tokenizer", "vq"),
        ("class_names", 3),
        ("class_names", None),
    ],
)
def test_a_run_config_with_a_value_of_a_wrong_type_is_refused(tmp_path: pathlib.Path, key: str, value: object) -> None:
    run = write_tiny_run(tmp_path / "run", **{key: value})
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_checkpoint(run)
    assert str(run / "config.json") in one_sentence(caught)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_run_config_that_is_no_object_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    run = write_tiny_run(tmp_path / "run")
    (run / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run)
    assert str(run / "config.json") in one_sentence(caught)


def _write_vae(file: pathlib.Path, weights: dict[str, Tensor]) -> pathlib.Path:
    torch.save({"model": weights}, file)
    return file


def _write_run_of_latents(folder: pathlib.Path, tokenizer: str) -> pathlib.Path:
    run = write_tiny_run(folder, model=CONFIG.to_dict(), tokenizer=tokenizer, class_names=[])
    checkpoint.save_weights(run / "model.safetensors", mar_weights())
    return run


def test_a_run_without_a_tokenizer_accepts_one(tmp_path: pathlib.Path) -> None:
    vae = _write_vae(tmp_path / "vae.ckpt", vae_weights())
    loaded = load_checkpoint(_write_run_of_latents(tmp_path / "run", "none"), tokenizer=vae)
    assert loaded.tokenizer == "kl"
    assert loaded.vae is not None
    assert same_weights(loaded.vae, vae_weights())
    assert same_weights(loaded.model, mar_weights())


@pytest.mark.parametrize("tokenizer", ["pixel", "kl"])
def test_a_run_with_a_tokenizer_refuses_another(tmp_path: pathlib.Path, tokenizer: str) -> None:
    vae = _write_vae(tmp_path / "vae.ckpt", vae_weights())
    run = _write_run_of_latents(tmp_path / "run", tokenizer)
    with pytest.raises(ConfigError, match=rf"--tokenizer.*its own, {tokenizer}") as caught:
        load_checkpoint(run, tokenizer=vae)
    assert str(run) in one_sentence(caught)


def test_a_run_loads_with_its_autoencoder(tmp_path: pathlib.Path) -> None:
    run = _write_run_of_latents(tmp_path / "run", "kl")
    checkpoint.save_weights(run / "tokenizer.safetensors", vae_weights())
    loaded = load_checkpoint(run)
    assert loaded.tokenizer == "kl"
    assert loaded.vae is not None
    assert loaded.vae.config == VAE
    assert same_weights(loaded.vae, vae_weights())


def test_a_run_without_its_autoencoder_file_is_refused(tmp_path: pathlib.Path) -> None:
    run = _write_run_of_latents(tmp_path / "run", "kl")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run)
    assert str(run / "tokenizer.safetensors") in one_sentence(caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 5}, "vae_embed_dim is 4 by"),
        ({"multipliers": (1, 2)}, "vae_stride is 4 by"),
    ],
    ids=["channels", "stride"],
)
@pytest.mark.parametrize("held", [True, False])
def test_the_error_about_the_autoencoder_of_another_model_names_both_values(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str, held: bool
) -> None:
    weights = vae_weights(dataclasses.replace(VAE, attention_levels=(), **change))
    run = _write_run_of_latents(tmp_path / "run", "kl" if held else "none")
    if held:
        vae = run / "tokenizer.safetensors"
        checkpoint.save_weights(vae, weights)
    else:
        vae = _write_vae(tmp_path / "vae.ckpt", weights)
    with pytest.raises(ConfigError, match=message) as caught:
        load_checkpoint(run, tokenizer=None if held else vae)
    message = one_sentence(caught)
    assert str(run / "config.json") in message
    assert str(vae) in message


def test_weights_are_saved_and_read_bit_for_bit_with_their_step(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "new" / "weights.safetensors"  # the folder is made
    tensors = {"turned": torch.randn(4, 6).T, "bits": torch.randn(5).bfloat16(), "empty": torch.zeros(0, 3)}
    checkpoint.save_weights(file, tensors, {"step": "12"})
    loaded = read_safetensors(file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert checkpoint.saved_step(file) == 12
    assert [path.name for path in file.parent.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("metadata", [None, {"step": "-3"}, {"step": "soon"}, {"epoch": "3"}])
def test_a_file_that_names_no_step_has_none(tmp_path: pathlib.Path, metadata: dict[str, str] | None) -> None:
    file = tmp_path / "state.safetensors"
    checkpoint.save_weights(file, {"w": torch.zeros(1)}, metadata)
    assert checkpoint.saved_step(file) is None
