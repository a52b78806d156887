"""Other forms of weights: known by content and not by name, packed, in folders, with arguments under other keys."""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from runtime.errors import CheckpointError
from tests.helpers.published_forms import (
    CONFIG,
    LAYOUT,
    mar_weights,
    same_weights,
    vae_weights,
    write_component,
    write_pipeline,
    write_pth,
    write_safetensors,
)
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import load_vae


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "MODEL.SAFETENSORS"])
def test_a_safetensors_file_is_known_by_its_content(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, name: str
) -> None:
    write_safetensors(tmp_path / name, mar_weights())
    assert same_weights(load_checkpoint(tmp_path / name, heads_file).model, mar_weights())
    write_safetensors(tmp_path / name, vae_weights())
    assert same_weights(load_vae(tmp_path / name), vae_weights())


def test_a_checkpoint_of_pytorch_under_another_name_is_called_that(tmp_path: pathlib.Path) -> None:
    file = write_pth(tmp_path / "model.safetensors", mar_weights())
    with pytest.raises(CheckpointError, match=r"a checkpoint of PyTorch, .*; rename it so that it ends in") as caught:
        load_checkpoint(file)
    one_sentence(caught)


def _gzip(file: pathlib.Path, packed: pathlib.Path) -> None:
    packed.write_bytes(gzip.compress(file.read_bytes()))


def _zip(file: pathlib.Path, packed: pathlib.Path) -> None:
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(file, "weights.pth")


def _tar(file: pathlib.Path, packed: pathlib.Path) -> None:
    with tarfile.open(packed, "w") as archive:
        archive.add(file, "weights.pth")


def _server_error(file: pathlib.Path, packed: pathlib.Path) -> None:
    packed.write_text('{"error":"Repository not found"}')


def _torchscript(file: pathlib.Path, packed: pathlib.Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(packed)


@pytest.mark.parametrize(
    ("pack", "expected"),
    [
        (_gzip, "an archive in place of the content; unpack it and give what is in it"),
        (_tar, "an archive in place of the content; unpack it and give what is in it"),
        (_zip, "a zip archive, not weights; unpack it and give what is in it"),
        (_server_error, "an error message of a server in place of the content; download the file again"),
        (
            _torchscript,
            "a TorchScript program, not weights; torch.save the state_dict() of the model where it was made",
        ),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(
    tmp_path: pathlib.Path, pack: Callable[[pathlib.Path, pathlib.Path], None], expected: str
) -> None:
    pack(write_pth(tmp_path / "weights.pth", mar_weights()), tmp_path / "packed.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "packed.pth")
    assert one_sentence(caught) == f"{tmp_path / 'packed.pth'}: {expected}"


@pytest.mark.parametrize("key", ["hyper_parameters", "config", "cfg", "opt"])
def test_the_arguments_of_a_training_are_read_under_other_keys(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, key: str
) -> None:
    """Without them, tokens of 16 values would be taken for one latent of 16 channels."""
    torch.save({"model_ema": mar_weights(), "args": None, key: LAYOUT}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth", heads_file).model.config == CONFIG
    torch.save({"model_ema": mar_weights(), "config": "configs/mar.yaml"}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth", heads_file).model.config.vae_embed_dim == 16


def test_a_component_of_earlier_versions_of_diffusers_is_read(tmp_path: pathlib.Path) -> None:
    pipeline = write_pipeline(tmp_path / "pipeline")
    for folder, weights in (("transformer", mar_weights()), ("vae", vae_weights())):
        torch.save(weights, pipeline / folder / "diffusion_pytorch_model.bin")
        (pipeline / folder / "diffusion_pytorch_model.safetensors").unlink()
    loaded = load_checkpoint(pipeline)
    assert loaded.vae is not None
    assert same_weights(loaded.model, mar_weights())
    assert same_weights(loaded.vae, vae_weights())
    torch.save([vae_weights()], pipeline / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected tensors by name, found list") as caught:
        load_checkpoint(pipeline)
    one_sentence(caught)


def test_a_folder_without_the_usual_names_says_which_files_it_has(tmp_path: pathlib.Path) -> None:
    component = write_component(tmp_path / "component", mar_weights(), CONFIG.to_dict())
    (component / "diffusion_pytorch_model.safetensors").rename(component / "weights.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights; .*; to use one of its files, name that: weights\.fp16"):
        load_checkpoint(component)
    (component / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json; to use one of its files, name that: weights\.fp16"):
        load_checkpoint(component)
    with pytest.raises(CheckpointError, match=r"no config\.json"):  # and not that --model is for other checkpoints
        load_checkpoint(component, name="mar_base")
    shutil.rmtree(component)
    component.mkdir()
    with pytest.raises(CheckpointError, match=r"it has no config\.json$"):
        load_checkpoint(component)


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_a_scale_for_each_channel_is_refused_wherever_it_is_stored(tmp_path: pathlib.Path, key: str) -> None:
    torch.save({"model": vae_weights(), key: [1.0, 2.0, 3.0, 4.0]}, tmp_path / "kl.ckpt")
    save_file(vae_weights(), tmp_path / "kl.safetensors", {key: json.dumps([1.0, 2.0, 3.0, 4.0])})
    for name in ("kl.ckpt", "kl.safetensors"):
        with pytest.raises(CheckpointError, match=f"{key} has a value for each channel"):
            load_vae(tmp_path / name)
