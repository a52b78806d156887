"""Reading of published models: training checkpoints, files of tensors, and folders in the format of diffusers."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.checks import truncate
from runtime.errors import CheckpointError
from runtime.storage import structured_files
from runtime.storage.structured_files import FaultReport
from training.checkpoints.diffusers_autoencoder import (
    read_norm_groups,
    with_published_names,
    with_quantization_convolutions,
)
from training.checkpoints.find_weights import Sought, find_weights
from training.checkpoints.infer_config import PartialConfig, Shapes, configs_from_arguments
from training.checkpoints.latent_scale import LatentScale, scale_of_config, scale_of_header, scale_of_pickle
from training.checkpoints.pickles import StandIn, read_pickle
from training.checkpoints.run_folder import describe_weight_files
from training.checkpoints.sharded_checkpoints import refuse_sharded_content
from training.checkpoints.tensor_files import (
    assign_weights,
    check_tensors,
    is_safetensors,
    read_metadata,
    read_safetensors,
)
from training.models.autoencoder import NORM_GROUPS, AutoencoderKL, vae_config

NORM_GROUPS_KEY = "norm_groups"
"""The key in the header of an autoencoder that this project has written."""

DIFFUSERS_INDEX = "model_index.json"
"""The file that makes a folder a pipeline of diffusers."""

VAE_FOLDER = "vae"
"""The folder of the autoencoder in a pipeline."""

Warn = Callable[[str], None]
"""Is called with one line for each thing that a person should know about a file."""

_DIFFUSERS_CLASS = "_class_name"  # a key that every config of diffusers has
_DIFFUSERS_CONFIG = "config.json"
_MODEL_FOLDERS = ("transformer", "mar", "model")
_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLE_FILES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")  # of earlier versions

# Where training codes keep the arguments of a training: the published one, Lightning, and others.
_ARGUMENT_KEYS = ("args", "hyper_parameters", "config", "cfg", "opt")

# Arguments of the published constructor that concern sampling or training and not the model.
_IGNORED_ARGUMENTS = ("num_sampling_steps", "grad_checkpointing")

_MAR = Sought("the averaged weights under 'model_ema'", "z_proj.weight")
_VAE = Sought(
    "the weights of an autoencoder under 'model'",
    "decoder.conv_in.weight",
    ("encoder", "decoder", "quant_conv", "post_quant_conv", "linear"),
)


def _ignore(warning: str) -> None:
    """Pass over a warning."""


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


def read_published(path: pathlib.Path, warn: Warn = _ignore) -> PublishedCheckpoint:
    """Read a published model: a `.pth`, a `.safetensors`, or a folder in the format of diffusers.

    Raises:
        CheckpointError: A file is missing or damaged, or holds something else.
    """
    if path.is_dir():
        return _read_diffusers(path, warn)
    if is_safetensors(path):
        return PublishedCheckpoint(_of_file(read_safetensors(path), _MAR, path), [path], [])
    content = read_pickle(path)
    refuse_sharded_content(path, content)
    found = find_weights(content, _MAR, path)
    if not found.averaged and found.place:
        warn(f"{path}: there are no averaged weights; those under {found.place} are taken, which draw worse images")
    if found.others:
        warn(f"{path}: of several averages, those under {found.place} are taken, not {', '.join(found.others)}")
    weights = check_tensors(found.weights, str(path))
    return PublishedCheckpoint(weights, [path], configs_from_arguments(arguments_of(content, path)))


def arguments_of(content: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Return the arguments of a training, by name: those under the first of `_ARGUMENT_KEYS` that has some."""
    for key in _ARGUMENT_KEYS:
        arguments = content.get(key)
        if isinstance(arguments, (argparse.Namespace, StandIn)):
            arguments = vars(arguments)
        if isinstance(arguments, Mapping):
            return {name: value for name, value in arguments.items() if isinstance(name, str)}
        if arguments is not None and key == _ARGUMENT_KEYS[0]:
            raise CheckpointError(
                f"{path}: expected the arguments of its training under {key!r}, found {type(arguments).__name__}"
            )
    return {}


def _of_file(tensors: Mapping[str, Tensor], sought: Sought, path: pathlib.Path) -> dict[str, Tensor]:
    """Return the weights of a module among the tensors of a file; all of them where the module is not found.

    What is missing is then named by the inference of the config.
    """
    if any(name.endswith(sought.anchor) for name in tensors):
        return find_weights(tensors, sought, path).weights
    return dict(tensors)


def is_diffusers_folder(path: pathlib.Path) -> bool:
    """Return whether a folder is in the format of diffusers: a pipeline, or one of its components."""
    if (path / DIFFUSERS_INDEX).is_file():
        return True
    config = path / "config.json"
    return config.is_file() and _DIFFUSERS_CLASS in read_json_object(config)


def load_vae(
    path: pathlib.Path,
    latent_scale: float | None = None,
    latent_shift: float | None = None,
    warn: Warn = _ignore,
) -> AutoencoderKL:
    """Load a KL autoencoder from a `.ckpt`, a `.safetensors`, or a folder in the format of diffusers.

    The parameters may have the names of the published autoencoder, of latent diffusion models or of diffusers.

    Args:
        path: The file or folder. Of a pipeline, its autoencoder is loaded.
        latent_scale: The factor that gives its latents unit variance; None for that of the file, or the published one.
        latent_shift: What is subtracted from its latents before; None for that of the file, or 0.
        warn: Called with one line for each thing that a person should know.

    Returns:
        The autoencoder in evaluation mode, with memory-mapped weights.

    Raises:
        CheckpointError: A file is missing or damaged, or holds something else.
        ConfigError: The given scale or shift is impossible.
    """
    if (path / DIFFUSERS_INDEX).is_file():
        path = path / VAE_FOLDER
    config = _config_beside(path)
    groups = _norm_groups(path) if config is None else read_norm_groups(config, str(path))
    weights, scale = _read_vae(path, config, warn)
    weights = with_quantization_convolutions(with_published_names(weights), config)
    config_of_vae = vae_config(shapes_of(weights), str(path), groups)
    with torch.device("meta"):
        vae = AutoencoderKL(config_of_vae)
    scale = scale.replaced(latent_scale, latent_shift)
    (vae.latent_scale, vae.latent_shift), vae.scale_source = scale.values(path), scale.source
    assign_weights(vae, weights, str(path))
    return vae


def _read_vae(
    path: pathlib.Path, config: Mapping[str, Any] | None, warn: Warn
) -> tuple[dict[str, Tensor], LatentScale]:
    """Return the weights of an autoencoder and the scale of its latents; `config` is that of diffusers, if any."""
    if path.is_dir():
        weights, _ = read_component(path, warn)
        scale = None
    elif is_safetensors(path):
        weights, scale = read_safetensors(path), scale_of_header(read_metadata(path), path)
    else:
        content = read_pickle(path)
        refuse_sharded_content(path, content)
        found = find_weights(content, _VAE, path)
        if found.averaged:
            warn(f"{path}: the averaged weights of the autoencoder are taken, under {found.place}")
        weights, scale = found.weights, scale_of_pickle(content, path)
    if scale is None and config is not None:
        scale = scale_of_config(config, (path if path.is_dir() else path.parent) / _DIFFUSERS_CONFIG)
    scale = scale or dataclasses.replace(LatentScale(), source=f"{LatentScale.source}, because {path.name} names none")
    return _of_file(weights, _VAE, path), scale


def _norm_groups(path: pathlib.Path) -> int:
    """Return the groups of the normalizations in the header of an autoencoder, or the published number.

    Raises:
        CheckpointError: They are no positive whole number.
    """
    text = read_metadata(path).get(NORM_GROUPS_KEY, str(NORM_GROUPS))
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise CheckpointError(f"{path}: {NORM_GROUPS_KEY} must be a positive whole number, found {truncate(text)}")
    return int(text)


def _config_beside(path: pathlib.Path) -> Mapping[str, Any] | None:
    """Return the config of the component of diffusers that a folder or a file is; None if it is none."""
    folder = path if path.is_dir() else path.parent
    file = folder / _DIFFUSERS_CONFIG
    if not file.is_file() or not (path.is_dir() or path.name in _WEIGHT_FILES):
        return None
    config = read_json_object(file)
    return config if path.is_dir() or _DIFFUSERS_CLASS in config else None


def latent_scale(path: pathlib.Path) -> tuple[float, float]:
    """Return the scale and shift in the header of an autoencoder that this project has written.

    Raises:
        CheckpointError: The header has a scale that is no positive number.
    """
    return (scale_of_header(read_metadata(path), path) or LatentScale()).values(path)


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
    return structured_files.read_json_object(path, FaultReport(CheckpointError))


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _read_diffusers(path: pathlib.Path, warn: Warn) -> PublishedCheckpoint:
    """Read a component of diffusers, or a pipeline with a model and possibly an autoencoder."""
    folder, vae = path, None
    if (path / DIFFUSERS_INDEX).is_file():
        present = [path / name for name in _MODEL_FOLDERS if (path / name / _DIFFUSERS_CONFIG).is_file()]
        if not present:
            raise CheckpointError(f"{path}: a pipeline without a model; looked for {', '.join(_MODEL_FOLDERS)}")
        folder, vae = present[0], path / VAE_FOLDER
    tensors, files = read_component(folder, warn)
    arguments = read_arguments(folder / _DIFFUSERS_CONFIG)
    configs = configs_from_arguments({name: value for name, value in arguments.items() if not name.startswith("_")})
    weights = _of_file(tensors, _MAR, folder)
    return PublishedCheckpoint(weights, files, configs, vae if vae is not None and vae.is_dir() else None)


def read_component(folder: pathlib.Path, warn: Warn) -> tuple[dict[str, Tensor], list[pathlib.Path]]:
    """Return the tensors of a component of diffusers by name, and its files.

    These are the shards that its index names, or one file.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    names = (*(f"{name}.index.json" for name in _WEIGHT_FILES), *_WEIGHT_FILES, *_PICKLE_FILES)
    present = [folder / name for name in names if (folder / name).is_file()]
    if not present:
        raise CheckpointError(
            f"{folder}: no weights; looked for {', '.join(_WEIGHT_FILES)}, their indices, and "
            f"{', '.join(_PICKLE_FILES)}{describe_weight_files(folder)}"
        )
    taken = present[0]
    if taken.suffix == ".json":
        tensors, files = _read_shards(taken, warn)
    elif taken.name in _PICKLE_FILES:
        tensors, files = _read_state_dict(taken), [taken]
    else:
        tensors, files = read_safetensors(taken), [taken]
    if others := [file.name for file in present[1:] if file not in files]:
        warn(f"{folder}: {taken.name} is followed, and {', '.join(others)} beside it left out; remove what is old")
    return tensors, files


def _read_state_dict(path: pathlib.Path) -> dict[str, Tensor]:
    """Return the tensors in a file of `torch.save` that holds nothing else."""
    content = read_pickle(path)
    refuse_sharded_content(path, content)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path}: expected tensors by name, found {type(content).__name__}")
    return check_tensors(content, str(path))


def _read_shards(index: pathlib.Path, warn: Warn) -> tuple[dict[str, Tensor], list[pathlib.Path]]:
    """Return the tensors that an index of shards names, each from the file that it names, and these files."""
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index}: expected a weight_map from parameters to files")
    tensors: dict[str, Tensor] = {}
    files = [index.parent / pathlib.PurePath(name).name for name in sorted(set(places.values()))]
    for file in files:
        shard = read_safetensors(file)
        named = {name for name, place in places.items() if pathlib.PurePath(place).name == file.name}
        if strangers := sorted(shard.keys() - named):
            warn(f"{file}: holds {strangers[0]} and {len(strangers) - 1} others that {index.name} does not place there")
        tensors |= {name: shard[name] for name in named & shard.keys()}
    return tensors, files
