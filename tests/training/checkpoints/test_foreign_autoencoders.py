"""Autoencoders of latent diffusion models and of diffusers: their weights, and the scale of their latents."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from runtime.errors import CheckpointError, ConfigError
from tests.helpers.command_line import Mar
from tests.helpers.distance import relative_l2
from tests.helpers.formula_weights import formula_weights
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.published_forms import (
    VAE,
    Weights,
    mar_weights,
    same_weights,
    vae_weights,
    write_component,
    write_json,
    write_pipeline,
    write_pth,
)
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import load_checkpoint, save_run
from training.checkpoints.published_files import load_vae

_DIFFUSERS = GOLDEN / "diffusers"
_LOSS = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.full((2,), torch.nan)}


def _other() -> Weights:
    """Weights that must not be taken."""
    return {name: tensor + 1 for name, tensor in vae_weights().items()}


def _lightning(weights: Weights) -> dict[str, Any]:
    return {"epoch": 1, "pytorch-lightning_version": "1.0.8", "state_dict": {**weights, **_LOSS}, "callbacks": {}}


_LAYOUTS: dict[str, Any] = {
    "published": {"model": {**vae_weights(), **_LOSS}},
    "alone": vae_weights(),
    "lightning": _lightning(vae_weights()),
    "first-stage": _lightning({f"first_stage_model.{name}": tensor for name, tensor in vae_weights().items()}),
    "wrapped": {"model": {f"module._orig_mod.{name}": tensor for name, tensor in vae_weights().items()}},
    "average": _lightning({**_other(), **{f"ema.{name}": tensor for name, tensor in vae_weights().items()}}),
    "average-without-dots": _lightning(
        {**_other(), **{"model_ema." + name.replace(".", ""): tensor for name, tensor in vae_weights().items()}}
    ),
    "counters": {"model": {**vae_weights(), "model_ema.decay": torch.tensor(0.9), "scale_by": torch.tensor(3)}},
}


@pytest.mark.parametrize("content", _LAYOUTS.values(), ids=_LAYOUTS)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_layout_of_an_autoencoder_gives_its_weights(tmp_path: pathlib.Path, content: Any, suffix: str) -> None:
    file = tmp_path / f"kl{suffix}"
    if suffix == ".ckpt":
        torch.save(content, file)
    else:
        save_file(content.get("model", content.get("state_dict", content)), file)
    vae = load_vae(file)
    assert vae.config == VAE
    assert same_weights(vae, vae_weights())
    assert (vae.latent_scale, vae.latent_shift) == (0.2325, 0)
    assert vae.scale_source == f"the published KL-16, because {file.name} names none"


# Autoencoders of diffusers. The golden files are what the library itself computes with weights by formula.


def _write_diffusers(case: str, folder: pathlib.Path, **changes: object) -> pathlib.Path:
    shapes = json.loads((_DIFFUSERS / case / "shapes.json").read_text())
    folder.mkdir(parents=True)
    save_file(formula_weights(shapes), folder / "diffusion_pytorch_model.safetensors")
    write_json(folder / "config.json", {**json.loads((_DIFFUSERS / case / "config.json").read_text()), **changes})
    return folder


@pytest.mark.parametrize("case", sorted(folder.name for folder in _DIFFUSERS.iterdir()))
@pytest.mark.parametrize("named", ["folder", "file", "pipeline"])
def test_an_autoencoder_of_diffusers_computes_what_the_library_computes(
    tmp_path: pathlib.Path, case: str, named: str
) -> None:
    folder = _write_diffusers(case, tmp_path / "pipeline" / "vae")
    write_json(tmp_path / "pipeline" / "model_index.json", {"_class_name": "SomePipeline"})
    files = {"folder": folder, "file": folder / "diffusion_pytorch_model.safetensors", "pipeline": folder.parent}
    vae = load_vae(files[named])
    with np.load(_DIFFUSERS / case / "arrays.npz") as arrays, torch.inference_mode():
        encoded = vae.encode(torch.from_numpy(arrays["image"])).numpy()
        decoded = vae.decode(torch.from_numpy(arrays["latents"])).numpy()
        assert relative_l2(encoded, arrays["encoded"]) < 5e-6
        assert relative_l2(decoded, arrays["decoded"]) < 5e-6
    config = json.loads((folder / "config.json").read_text())
    assert vae.latent_scale == config["scaling_factor"]
    assert vae.latent_shift == (config["shift_factor"] or 0)
    assert vae.scale_source == "scaling_factor in vae/config.json"


def test_the_groups_in_the_config_of_diffusers_are_those_of_every_normalization(tmp_path: pathlib.Path) -> None:
    vae = load_vae(_write_diffusers("stable_diffusion", tmp_path / "vae", norm_num_groups=16))
    assert vae.config.norm_groups == 16
    published = load_vae(_write_diffusers("stable_diffusion", tmp_path / "published"))
    image = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(vae.encode(image), published.encode(image))


def test_earlier_names_of_attention_in_diffusers_are_read(tmp_path: pathlib.Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    folder = _write_diffusers("stable_diffusion", tmp_path / "vae")
    expected = load_vae(folder)
    shapes = json.loads((_DIFFUSERS / "stable_diffusion" / "shapes.json").read_text())
    weights = formula_weights(shapes)
    for new, earlier in names.items():
        weights = {name.replace(f".{new}.", f".{earlier}."): tensor for name, tensor in weights.items()}
    save_file(weights, tmp_path / "earlier.safetensors")
    assert same_weights(load_vae(tmp_path / "earlier.safetensors"), expected.state_dict())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"norm_num_groups": 0}, "norm_num_groups must be a positive whole number, found 0"),
        ({"norm_num_groups": "8"}, "norm_num_groups must be a positive whole number, found '8'"),
        ({"norm_num_groups": 24}, "a width that is a multiple of 24"),
        ({"act_fn": "gelu"}, "act_fn must be silu or swish, found 'gelu'"),
        ({"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "latents_mean has a value for each channel, which the engines cannot"),
        ({"latents_std": [1, 1, 1, 2]}, "latents_std has a value for each channel, which the engines cannot apply"),
        ({"scaling_factor": 0}, "scaling_factor must be a positive number, found 0"),
        ({"scaling_factor": "0.2"}, "scaling_factor must be a number, found '0.2'"),
        ({"scaling_factor": [0.1, 0.2]}, "scaling_factor must be a number, found list"),
        ({"shift_factor": True}, "shift_factor must be a number, found True"),
        (
            {"scaling_factor": None, "shift_factor": 0.5},
            "a shift of 0.5 is named (shift_factor in vae/config.json), but",
        ),
    ],
)
def test_a_config_that_cannot_be_applied_is_refused(
    tmp_path: pathlib.Path, changes: dict[str, object], expected: str
) -> None:
    folder = _write_diffusers("stable_diffusion", tmp_path / "vae", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_vae(folder)
    message = one_sentence(caught)
    assert str(folder) in message
    assert expected in message


def test_weights_without_a_convolution_that_their_config_promises_are_refused(tmp_path: pathlib.Path) -> None:
    folder = _write_diffusers("flux", tmp_path / "vae", use_quant_conv=True, use_post_quant_conv=True)
    with pytest.raises(CheckpointError, match=r"post_quant_conv\.weight") as caught:
        load_vae(folder)
    one_sentence(caught)


# The scale.


def _component(folder: pathlib.Path) -> pathlib.Path:
    return write_component(folder / "vae", vae_weights(), {"scaling_factor": 0.5, "shift_factor": 0.25})


def _header(folder: pathlib.Path) -> pathlib.Path:
    save_file(vae_weights(), folder / "kl.safetensors", {"scaling_factor": "0.5", "shift_factor": "0.25"})
    return folder / "kl.safetensors"


def _buffer(folder: pathlib.Path) -> pathlib.Path:
    content = {**vae_weights(), "scale_factor": torch.tensor(0.5), "shift_factor": torch.tensor(0.25)}
    torch.save(_lightning(content), folder / "kl.ckpt")
    return folder / "kl.ckpt"


def _hyperparameters(folder: pathlib.Path) -> pathlib.Path:
    content = {**_lightning(vae_weights()), "hyper_parameters": {"scale_factor": 0.5, "shift_factor": np.float32(0.25)}}
    torch.save(content, folder / "kl.ckpt")
    return folder / "kl.ckpt"


def _beside_weights(folder: pathlib.Path) -> pathlib.Path:
    torch.save({"model": vae_weights(), "scaling_factor": 0.5, "shift_factor": 0.25}, folder / "kl.ckpt")
    return folder / "kl.ckpt"


_FORMATS = [_component, _header, _buffer, _hyperparameters, _beside_weights]


@pytest.mark.parametrize("write", _FORMATS)
def test_scale_and_shift_are_read_wherever_a_format_has_them(
    tmp_path: pathlib.Path, write: Callable[[pathlib.Path], pathlib.Path]
) -> None:
    path = write(tmp_path)
    vae, image = load_vae(path), torch.zeros(1, 3, 16, 16)
    assert (vae.latent_scale, vae.latent_shift) == (0.5, 0.25)
    assert vae.scale_source.split(" ")[0] in ("scaling_factor", "scale_factor")
    mean = vae.moments(image)[:, : VAE.latent_channels]
    assert torch.equal(vae.encode(image), (mean - 0.25) * 0.5)
    assert torch.equal(
        vae.decode(vae.encode(image)), vae.decoder(vae.post_quant_conv((mean - 0.25) * 0.5 / 0.5 + 0.25))
    )


def test_the_default_of_diffusers_is_taken_where_its_config_has_no_scale(tmp_path: pathlib.Path) -> None:
    folder = _write_diffusers("stable_diffusion", tmp_path / "vae", scaling_factor=None)
    vae = load_vae(folder)
    assert vae.describe_scale() == "0.18215, by the default of diffusers, because vae/config.json names none"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(tmp_path: pathlib.Path, scale: float) -> None:
    with pytest.raises(ConfigError, match="--latent-scale must be a positive number"):
        load_vae(_component(tmp_path), scale)


def test_a_given_scale_completes_a_file_that_names_a_shift_alone(tmp_path: pathlib.Path) -> None:
    folder = _write_diffusers("stable_diffusion", tmp_path / "vae", scaling_factor=None, shift_factor=0.5)
    vae = load_vae(folder, 0.25)
    assert vae.describe_scale() == "0.25 after a shift of 0.5, by --latent-scale"


def test_a_model_is_loaded_without_its_autoencoder_whatever_the_state_of_that(tmp_path: pathlib.Path) -> None:
    pipeline = write_pipeline(tmp_path / "pipeline")
    write_json(pipeline / "vae" / "config.json", {"_class_name": "AutoencoderKL", "shift_factor": 0.5})
    with pytest.raises(CheckpointError, match="give it with --latent-scale"):
        load_checkpoint(pipeline)
    loaded = load_checkpoint(pipeline, autoencoder=False)
    assert (loaded.tokenizer, loaded.vae) == ("none", None)
    run = tmp_path / "run"
    save_run(run, load_checkpoint(pipeline, latent_scale=0.5))
    without = load_checkpoint(run, autoencoder=False)
    assert (load_checkpoint(run).tokenizer, without.tokenizer, without.vae) == ("kl", "none", None)
    assert same_weights(without.model, loaded.model.state_dict())


def test_a_given_scale_belongs_to_an_autoencoder(tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights())
    with pytest.raises(ConfigError, match=r"--latent-scale and .* are for an autoencoder; .*x\.pth has none"):
        load_checkpoint(file, heads_file, latent_scale=0.5)


def test_a_given_scale_is_kept_by_an_imported_run(mar: Mar, tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights())
    options = ["--model-config", heads_file, "--tokenizer", _component(tmp_path)]
    code, out, _ = mar("import", file, *options, "--out", tmp_path / "read")
    assert (code, out.splitlines()[-1]) == (
        0,
        "latent scale 0.5 after a shift of 0.25, by scaling_factor in vae/config.json",
    )
    code, out, _ = mar("import", file, *options, "--latent-scale", 0.125, "--out", tmp_path / "given")
    assert (code, out.splitlines()[-1]) == (0, "latent scale 0.125 after a shift of 0.25, by --latent-scale")
    for name, scale in (("read", 0.5), ("given", 0.125)):
        vae = load_checkpoint(tmp_path / name).vae
        assert vae is not None
        assert (vae.latent_scale, vae.latent_shift) == (scale, 0.25)
    code, _, err = mar("import", tmp_path / "given", "--latent-scale", 0.5, "--out", tmp_path / "again")
    assert code == 2
    assert "--latent-scale and --latent-shift belong to --tokenizer" in err


def test_the_warning_about_missing_averages_is_printed(
    mar: Mar, tmp_path: pathlib.Path, heads_file: pathlib.Path
) -> None:
    file = write_pth(tmp_path / "x.pth", None, model=mar_weights())
    code, _, err = mar("import", file, "--model-config", heads_file, "--out", tmp_path / "run")
    assert code == 0
    assert err.startswith(f"warning: {file}: there are no averaged weights; those under 'model' are taken")


def test_the_config_beside_a_file_of_another_name_is_not_its_own(tmp_path: pathlib.Path) -> None:
    folder = _component(tmp_path)
    shutil.copyfile(folder / "diffusion_pytorch_model.safetensors", folder / "mine.safetensors")
    assert load_vae(folder / "mine.safetensors").latent_scale == 0.2325
