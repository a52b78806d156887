"""Reading of published models: training checkpoints, files of tensors, and folders in the format of diffusers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError
from training.checkpoints.infer_config import PartialConfig, Shapes, configs_from_arguments
from training.checkpoints.tensor_files import (
    assign_weights,
    read_metadata,
    read_pickle,
    read_safetensors,
    tensors_under,
)
from training.models.autoencoder import LATENT_SCALE, AutoencoderKL, vae_config

SCALE_KEY = "latent_scale"
"""The key of the latent scale in the header of an autoencoder that this project has trained."""

_DIFFUSERS_CLASS = "_class_name"  # a key that every config of diffusers has
_DIFFUSERS_INDEX = "model_index.json"
_MODEL_FOLDERS, _VAE_FOLDER = ("transformer", "mar", "model"), "vae"
_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")

# Arguments of the published constructor that concern sampling or training and not the model.
_IGNORED_ARGUMENTS = ("num_sampling_steps", "grad_checkpointing")


@dataclasses.dataclass(frozen=True)
class PublishedCheckpoint:
    """The averaged weights of a published model.

    Attributes:
        weights: The tensors by name.
        files: The files that were read.
        configs: What the files say about the model's config.
        tokenizer: The autoencoder beside the model, None where there is none.
    """

    weights: Mapping[str, Tensor]
    files: list[pathlib.Path]
    configs: list[PartialConfig]
    tokenizer: pathlib.Path | None = None


def read_published(path: pathlib.Path) -> PublishedCheckpoint:
    """Read a published model: a `.pth`, a `.safetensors`, or a folder in the format of diffusers.

    Raises:
        CheckpointError: A file is missing or damaged, or holds something else.
    """
    if path.is_dir():
        return _read_diffusers(path)
    if path.suffix == ".safetensors":
        return PublishedCheckpoint(read_safetensors(path), [path], [])
    content = read_pickle(path)
    weights = tensors_under(content, "model_ema", path, "the averaged weights")
    arguments = content.get("args", {})
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, dict):
        raise CheckpointError(
            f"{path}: expected the arguments of its training under 'args', found {type(arguments).__name__}"
        )
    return PublishedCheckpoint(weights, [path], configs_from_arguments(arguments))


def is_diffusers_folder(path: pathlib.Path) -> bool:
    """Return whether a folder is in the format of diffusers: a pipeline, or one of its components."""
    if (path / _DIFFUSERS_INDEX).is_file():
        return True
    config = path / "config.json"
    return config.is_file() and _DIFFUSERS_CLASS in read_json_object(config)


def load_vae(path: pathlib.Path) -> AutoencoderKL:
    """Load a KL autoencoder from a published `.ckpt`, a `.safetensors`, or a folder in the format of diffusers.

    Returns:
        The autoencoder in evaluation mode, with memory-mapped weights.

    Raises:
        CheckpointError: A file is missing or damaged, or holds something else.
    """
    weights: Mapping[str, Tensor]
    if path.is_dir():
        weights, _ = _read_folder(path)
    elif path.suffix == ".safetensors":
        weights = read_safetensors(path)
    else:
        weights = tensors_under(read_pickle(path), "model", path, "the weights of an autoencoder")
    # A training checkpoint also has the weights of the loss.
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("loss.")}
    config = vae_config(shapes_of(weights), str(path))
    with torch.device("meta"):
        vae = AutoencoderKL(config, latent_scale(path))
    assign_weights(vae, weights, str(path))
    return vae


def latent_scale(path: pathlib.Path) -> float:
    """Return the factor that gives the latents of an autoencoder unit variance; without one in the header, KL-16's.

    Raises:
        CheckpointError: The header has a factor that is no positive number.
    """
    text = read_metadata(path).get(SCALE_KEY, repr(LATENT_SCALE))
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise CheckpointError(f"{path}: its header has a latent scale of {text!r}, expected a positive number")
    return scale


def config_from_vae(vae: AutoencoderKL, path: pathlib.Path) -> PartialConfig:
    """Return the fields of a model's config that follow from the autoencoder at `path`."""
    return PartialConfig(
        f"the tokenizer {path}", {"vae_embed_dim": vae.config.latent_channels, "vae_stride": vae.config.stride}
    )


def read_arguments(path: pathlib.Path) -> dict[str, Any]:
    """Return the constructor arguments in a JSON file, where they are the object itself or its value `config`.

    Raises:
        CheckpointError: The file is missing, damaged or no such object.
    """
    arguments = read_json_object(path)
    arguments = arguments.get("config", arguments)
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: config must be a JSON object, found {type(arguments).__name__}")
    return {name: value for name, value in arguments.items() if name not in _IGNORED_ARGUMENTS}


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: The file is missing, not JSON, or holds another value.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _read_diffusers(path: pathlib.Path) -> PublishedCheckpoint:
    """Read a component of diffusers, or a pipeline with a model and possibly an autoencoder."""
    folder, vae = path, None
    if (path / _DIFFUSERS_INDEX).is_file():
        present = [path / name for name in _MODEL_FOLDERS if (path / name / "config.json").is_file()]
        if not present:
            raise CheckpointError(f"{path}: a pipeline without a model; looked for {', '.join(_MODEL_FOLDERS)}")
        folder, vae = present[0], path / _VAE_FOLDER
    weights, files = _read_folder(folder)
    arguments = read_arguments(folder / "config.json")
    configs = configs_from_arguments({name: value for name, value in arguments.items() if not name.startswith("_")})
    return PublishedCheckpoint(weights, files, configs, vae if vae is not None and vae.is_dir() else None)


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, Tensor], list[pathlib.Path]]:
    """Return the tensors of a component by name, and its files: one, or the shards that its index names."""
    for name in _WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_safetensors(folder / name), [folder / name]
        if index.is_file():
            shards = read_json_object(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
                raise CheckpointError(f"{index}: expected a weight_map from parameters to files")
            files = [folder / pathlib.PurePath(file).name for file in sorted(set(shards.values()))]
            return {name: tensor for file in files for name, tensor in read_safetensors(file).items()}, files
    raise CheckpointError(f"{folder}: no weights; looked for {', '.join(_WEIGHT_FILES)} and their indices")
