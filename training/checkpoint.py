"""Reading and writing checkpoints: a run of this trainer, or a `.pth` of the published code.

A run is a folder: `config.json`, the averaged weights in `model.safetensors`, and all that resuming
needs in `training-state.safetensors`. Nothing here unpickles more than tensors and the one
`argparse.Namespace` that the published code puts into its files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from runtime.artifact import TOKENIZERS
from runtime.config import ModelConfig
from runtime.errors import CheckpointError, ConfigError
from runtime.files import replacing, sha256, write_json
from training.model import MAR

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "training-state.safetensors"

# Arguments of the published constructor that say how a model is sampled or trained, not what it is.
_NOT_OF_THE_MODEL = ("num_sampling_steps", "grad_checkpointing")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model as it leaves training: its shape, its averaged weights, and what its labels mean."""

    model: MAR
    tokenizer: str  # "pixel", or "none" where the checkpoint has no tokenizer
    class_names: tuple[str, ...]
    source: str
    sha256: str


def save_weights(path: pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error


def load_weights(path: pathlib.Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy it again or train on") from error


def load_into(module: nn.Module, path: pathlib.Path) -> None:
    """Fill `module` with the weights at `path`, which must be exactly its own."""
    try:
        module.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: not the weights of this {type(module).__name__}; delete it ({error})"
        ) from error


def saved_metadata(path: pathlib.Path) -> dict[str, str]:
    """What a file was saved with beside its tensors; nothing if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def saved_step(path: pathlib.Path) -> int | None:
    """The training step a file was saved at; None if it is missing, damaged or names none."""
    step = saved_metadata(path).get("step", "")
    return int(step) if step.isdecimal() else None


def write_run_config(run: pathlib.Path, config: Mapping[str, Any]) -> None:
    write_json(run / CONFIG_FILE, config)


def read_run_config(run: pathlib.Path) -> dict[str, Any]:
    path = run / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{run}: not a run of mar train, it has no {CONFIG_FILE}")
    return read_json_object(path)


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_checkpoint(path: pathlib.Path, config_file: pathlib.Path | None = None) -> Checkpoint:
    """The model in a run folder or a published `.pth`, with its averaged weights, in evaluation mode.

    `config_file` holds the constructor arguments, alone or under `config`, for a checkpoint that does
    not tell them. Raises `CheckpointError` or `ConfigError`.
    """
    if path.is_dir():
        if config_file is not None:
            raise ConfigError(
                f"--config is for checkpoints that do not tell their shape; {path} has its own {CONFIG_FILE}"
            )
        run = read_run_config(path)
        where, weights_file = f"{path / CONFIG_FILE}", path / WEIGHTS_FILE
        try:
            arguments, tokenizer, class_names = run["model"], run["tokenizer"], run["class_names"]
        except KeyError as error:
            raise CheckpointError(f"{where}: the key {error} is missing") from None
        if tokenizer not in TOKENIZERS:
            raise CheckpointError(f"{where}: tokenizer {tokenizer!r} is not one of {', '.join(TOKENIZERS)}")
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise CheckpointError(f"{where}: class_names must be a list of texts, found {class_names!r}")
        weights = load_weights(weights_file)
    else:
        weights_file, tokenizer, class_names = path, "none", []
        weights = _load_published(path)
        if config_file is None:
            raise ConfigError(
                f"{path} does not tell the shape of its model; give it with --config FILE.json, the constructor "
                "arguments under their published names"
            )
        where, arguments = str(config_file), read_json_object(config_file)
        arguments = arguments.get("config", arguments)
        if isinstance(arguments, dict):
            arguments = {name: value for name, value in arguments.items() if name not in _NOT_OF_THE_MODEL}
    config = ModelConfig.from_dict(arguments, where)
    model = _model_from(config, weights, weights_file)
    return Checkpoint(model, tokenizer, tuple(class_names), path.name, sha256(weights_file))


def _load_published(path: pathlib.Path) -> dict[str, Tensor]:
    """The `model_ema` entry of a published checkpoint."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{named[1]}, which is" if named else "what is"
        raise CheckpointError(f"{path}: refused, it holds {what} no tensor and could run code when read") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint; copy it again") from error
    weights = content.get("model_ema") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"{path}: expected the averaged weights under 'model_ema', as the published code saves them"
        )
    return weights


def _model_from(config: ModelConfig, weights: Mapping[str, Tensor], source: pathlib.Path) -> MAR:
    with torch.device("meta"):
        model = MAR(**config.to_dict())
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in [*expected, *sorted(found.keys() - expected.keys())]:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{source}: {name} is {found.get(name, 'missing')} but the config asks for "
                f"{expected.get(name, 'no such parameter')}"
            )
        if not weights[name].isfinite().all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
    # Built again off the meta device: the tables of the loss are computed, not loaded.
    model = MAR(**config.to_dict())
    model.load_state_dict(weights)
    return model.eval()
