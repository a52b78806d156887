"""A small model and a small autoencoder of the published kind, written in every form that such models come in."""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.model.config import ModelConfig
from tests.helpers.formula_weights import formula_weights
from training.models.autoencoder import AutoencoderKL, VAEConfig
from training.models.mar import MAR

Weights = dict[str, Tensor]

# Every size differs from the others, so that no two of them can be mistaken for each other.
CONFIG = ModelConfig(
    img_size=16,
    vae_stride=4,
    patch_size=2,
    vae_embed_dim=4,
    class_num=5,
    buffer_size=3,
    encoder_embed_dim=24,
    encoder_depth=2,
    encoder_num_heads=3,
    decoder_embed_dim=32,
    decoder_depth=1,
    decoder_num_heads=8,
    mlp_ratio=2.0,
    diffloss_d=3,
    diffloss_w=40,
)
VAE = VAEConfig(latent_channels=4, width=32, multipliers=(1, 2, 2), blocks=1, attention_levels=(2,))

# What the tensors cannot tell, nor anything else of a published file.
HEADS = {"encoder_num_heads": 3, "decoder_num_heads": 8}
LAYOUT = {"img_size": 16, "vae_stride": 4, "patch_size": 2, "vae_embed_dim": 4}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def mar_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(MAR(**config.to_dict()))


def vae_shapes(config: VAEConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(AutoencoderKL(config))


def mar_weights(config: ModelConfig = CONFIG) -> Weights:
    return _copy(_mar_weights(config))


def vae_weights(config: VAEConfig = VAE) -> Weights:
    return _copy(_vae_weights(config))


@functools.cache
def _mar_weights(config: ModelConfig) -> Weights:
    return formula_weights(mar_shapes(config))


@functools.cache
def _vae_weights(config: VAEConfig) -> Weights:
    return formula_weights(vae_shapes(config))


def _copy(weights: Weights) -> Weights:
    return {name: tensor.clone() for name, tensor in weights.items()}


def same_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether a module has exactly these, bit for bit."""
    state = module.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)


def write_json(file: pathlib.Path, value: object) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


def write_pth(file: pathlib.Path, weights: object, arguments: object = None, **others: object) -> pathlib.Path:
    """A `checkpoint-last.pth` as the published trainer saves it, trained with the layout of `CONFIG`."""
    if arguments is None:
        arguments = argparse.Namespace(model="mar_custom", num_sampling_steps="100", lr=1e-4, **LAYOUT)
    others = {"model": {"z_proj.weight": torch.zeros(1)}, "optimizer": {}, "epoch": 399, **others}
    torch.save({**others, "model_ema": weights, "args": arguments}, file)
    return file


def write_safetensors(file: pathlib.Path, weights: Weights) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file)
    return file


def write_component(folder: pathlib.Path, weights: Weights, config: Mapping[str, Any], shards: int = 1) -> pathlib.Path:
    """A folder of diffusers': its config, and its weights in one file or in several and their index."""
    write_json(folder / "config.json", {"_class_name": "Some", "_diffusers_version": "0.33.0", **config})
    name = "diffusion_pytorch_model"
    if shards == 1:
        write_safetensors(folder / f"{name}.safetensors", weights)
        return folder
    files = {parameter: f"{name}-{number % shards:05}.safetensors" for number, parameter in enumerate(weights)}
    for file in sorted(set(files.values())):
        write_safetensors(folder / file, {key: weights[key] for key in weights if files[key] == file})
    write_json(folder / f"{name}.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return folder


def write_pipeline(folder: pathlib.Path, model: str = "transformer") -> pathlib.Path:
    """A folder of diffusers' with a model and an autoencoder."""
    write_json(folder / "model_index.json", {"_class_name": "MARPipeline"})
    write_component(folder / model, mar_weights(), CONFIG.to_dict())
    write_component(folder / "vae", vae_weights(), {"latent_channels": 4})
    return folder
