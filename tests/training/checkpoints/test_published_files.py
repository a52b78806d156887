"""Published models: the same model from a checkpoint, a file of tensors, and a folder of diffusers."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import shutil

import pytest
import torch

from tests.helpers.published_forms import (
    CONFIG,
    HEADS,
    LAYOUT,
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
from tests.helpers.published_models import WEIGHTS_FILE, write_vae_checkpoint
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import is_diffusers_folder, load_vae
from training.models.autoencoder import AutoencoderKL


def _sha256(*files: pathlib.Path) -> str:
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def test_a_pth_gives_its_averaged_weights(tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    file = write_pth(tmp_path / "checkpoint-last.pth", mar_weights())
    loaded = load_checkpoint(file, heads_file)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.source, loaded.sha256, loaded.tokenizer, loaded.vae) == (file.name, _sha256(file), "none", None)


def test_arguments_may_be_a_plain_dictionary_or_not_there(tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    assert load_checkpoint(write_pth(tmp_path / "x.pth", mar_weights(), LAYOUT), heads_file).model.config == CONFIG
    bare = tmp_path / "bare.pth"
    torch.save({"model_ema": mar_weights()}, bare)
    assert load_checkpoint(bare, write_json(tmp_path / "all.json", {**HEADS, **LAYOUT})).model.config == CONFIG


def test_a_pth_in_the_format_before_zip_archives_is_read(tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    file = tmp_path / "old.pth"
    content = {"model_ema": mar_weights(), "args": argparse.Namespace(**LAYOUT)}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert same_weights(load_checkpoint(file, heads_file).model, mar_weights())


def test_a_safetensors_file_gives_its_weights(tmp_path: pathlib.Path, arguments_file: pathlib.Path) -> None:
    file = write_safetensors(tmp_path / "mar.safetensors", mar_weights())
    loaded = load_checkpoint(file, arguments_file)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.source, loaded.sha256, loaded.tokenizer) == ("mar.safetensors", _sha256(file), "none")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "model.safetensors"])
def test_a_component_folder_gives_its_model_and_needs_nothing_else(tmp_path: pathlib.Path, name: str) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), {**CONFIG.to_dict(), "sample_size": 16, "_x": 1})
    (folder / WEIGHTS_FILE).rename(folder / name)
    loaded = load_checkpoint(folder)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.source, loaded.sha256, loaded.tokenizer) == ("mar", _sha256(folder / name), "none")


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_give_the_model_that_their_index_names(tmp_path: pathlib.Path, shards: int) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == shards
    write_safetensors(folder / "other.safetensors", {"z_proj.weight": torch.zeros(1)})  # which it does not name
    loaded = load_checkpoint(folder)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert loaded.sha256 == _sha256(*files)


@pytest.mark.parametrize("model", ["transformer", "mar", "model"])
def test_a_pipeline_folder_gives_its_model_with_its_autoencoder(tmp_path: pathlib.Path, model: str) -> None:
    loaded = load_checkpoint(write_pipeline(tmp_path / "pipeline", model))
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert loaded.tokenizer == "kl"
    assert loaded.vae is not None
    assert loaded.vae.config == VAE
    assert same_weights(loaded.vae, vae_weights())
    assert loaded.sha256 == _sha256(tmp_path / "pipeline" / model / WEIGHTS_FILE)


def test_a_pipeline_folder_without_an_autoencoder_has_no_tokenizer(tmp_path: pathlib.Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline")
    shutil.rmtree(folder / "vae")
    loaded = load_checkpoint(folder)
    assert (loaded.tokenizer, loaded.vae) == ("none", None)


def test_a_given_autoencoder_replaces_that_of_the_folder(tmp_path: pathlib.Path) -> None:
    other = {name: tensor + 1 for name, tensor in vae_weights().items()}
    file = write_safetensors(tmp_path / "other.safetensors", other)
    loaded = load_checkpoint(write_pipeline(tmp_path / "pipeline"), tokenizer=file)
    assert loaded.vae is not None
    assert same_weights(loaded.vae, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_single_precision(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in mar_weights().items()}
    loaded = load_checkpoint(write_safetensors(tmp_path / "mar.safetensors", weights), arguments_file)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert same_weights(loaded.model, {name: tensor.float() for name, tensor in weights.items()})


def test_a_loaded_model_can_generate_images(tmp_path: pathlib.Path) -> None:
    loaded = load_checkpoint(write_pipeline(tmp_path / "pipeline"))
    assert loaded.vae is not None
    for module in (loaded.model, loaded.vae):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_folders_in_the_format_of_diffusers_are_recognized(tmp_path: pathlib.Path) -> None:
    assert is_diffusers_folder(write_pipeline(tmp_path / "pipeline"))
    assert is_diffusers_folder(tmp_path / "pipeline" / "vae")
    assert not is_diffusers_folder(tmp_path)
    write_json(tmp_path / "run" / "config.json", {"model": {}, "tokenizer": "pixel"})
    assert not is_diffusers_folder(tmp_path / "run")


def test_changing_a_loaded_autoencoder_changes_no_file(tmp_path: pathlib.Path) -> None:
    """Weights are mapped from their file: what is done to them must not reach it."""
    file = write_vae_checkpoint(tmp_path, vae_weights())
    before = file.read_bytes()
    vae = load_vae(file)
    assert isinstance(vae, AutoencoderKL)
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
    assert file.read_bytes() == before
