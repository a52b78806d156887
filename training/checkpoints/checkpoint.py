"""Checkpoints: runs of this trainer, and the files and folders that published models come in.

A run is a folder: `config.json`, the averaged weights in `model.safetensors`, the tokenizer's in
`tokenizer.safetensors` where it has any, and all that resuming needs in `training-state.safetensors`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.artifact.artifact_folder import is_artifact
from runtime.artifact.manifest import TOKENIZERS
from runtime.errors import CheckpointError, ConfigError
from runtime.files import replacing, replacing_folder, sha256, write_json
from runtime.model.config import ModelConfig
from training.checkpoints.infer_config import PartialConfig, config_from_size_name, infer_config, merged
from training.checkpoints.published_files import (
    SCALE_KEY,
    config_from_vae,
    is_diffusers_folder,
    load_vae,
    read_arguments,
    read_json_object,
    read_published,
    shapes_of,
)
from training.checkpoints.tensor_files import fill, read_metadata, read_safetensors
from training.models.autoencoder import AutoencoderKL
from training.models.mar import MAR

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.safetensors"
STATE_FILE = "training-state.safetensors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model as it leaves training: its shape, its averaged weights, and what its labels mean.

    `tokenizer` is one of `runtime.artifact.manifest.TOKENIZERS`; `vae` is there where it is `kl`. `source` and
    `sha256` name the file of the weights.
    """

    model: MAR
    tokenizer: str
    class_names: tuple[str, ...]
    source: str
    sha256: str
    vae: AutoencoderKL | None = None


def save_weights(path: pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error


def save_vae(path: pathlib.Path, vae: AutoencoderKL) -> None:
    """Write an autoencoder for `load_vae` to read, its latent scale in the header."""
    save_weights(path, vae.state_dict(), {SCALE_KEY: repr(vae.latent_scale)})


def load_into(module: nn.Module, path: pathlib.Path) -> None:
    """Fill `module` with the weights at `path`, which must be exactly its own."""
    try:
        module.load_state_dict(read_safetensors(path))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: not the weights of this {type(module).__name__}; delete it ({error})"
        ) from error


def saved_step(path: pathlib.Path) -> int | None:
    """The training step a file was saved at; None if it is missing, damaged or names none."""
    step = read_metadata(path).get("step", "")
    return int(step) if step.isdecimal() else None


def write_run_config(run: pathlib.Path, config: Mapping[str, Any]) -> None:
    write_json(run / CONFIG_FILE, config)


def read_run_config(run: pathlib.Path) -> dict[str, Any]:
    path = run / CONFIG_FILE
    if not path.is_file():
        what = "an artifact" if is_artifact(run) else "a folder"
        raise CheckpointError(f"{run}: {what}, not a run of mar train: it has no {CONFIG_FILE}")
    return read_json_object(path)


def load_checkpoint(
    path: pathlib.Path,
    config_file: pathlib.Path | None = None,
    *,
    name: str | None = None,
    tokenizer: pathlib.Path | None = None,
) -> Checkpoint:
    """The model of a run folder, of a published `.pth` or `.safetensors`, or of a folder in diffusers' form.

    The shape of all but runs comes from the tensors and from the arguments a file holds; `name`, that of
    a published model, and `config_file`, constructor arguments, tell what is missing. `tokenizer` is a
    KL autoencoder in its published form. Averaged weights, in evaluation mode, mapped from their files.
    Raises `CheckpointError`, and `ConfigError` where two of these contradict each other.
    """
    if path.is_dir() and not is_diffusers_folder(path):
        for option, given in (("--config", config_file), ("--model", name)):
            if given is not None:
                raise ConfigError(
                    f"{option} is for checkpoints that do not tell their shape; {path} has its own {CONFIG_FILE}"
                )
        return _load_run(path, tokenizer)
    published = read_published(path)
    claims = list(published.claims)
    if name is not None:
        claims.append(config_from_size_name(name, f"--model {name}"))
    if config_file is not None:
        claims.append(PartialConfig(f"--config {config_file}", read_arguments(config_file)))
    vae = None
    if (tokenizer := tokenizer or published.tokenizer) is not None:
        vae = load_vae(tokenizer)
        claims.append(config_from_vae(vae, tokenizer))
    config = infer_config(claims, shapes_of(published.weights), str(path))
    model = _filled(config, published.weights, str(path))
    return Checkpoint(model, "none" if vae is None else "kl", (), path.name, _hash(published.files), vae)


def save_run(run: pathlib.Path, checkpoint: Checkpoint, origin: Mapping[str, Any] | None = None) -> None:
    """Write `checkpoint` as the folder `run`, whole or not at all, for `load_checkpoint` to read.

    `origin` is what the config says of where it came from; by default, the file that it was imported from.
    """
    with replacing_folder(run) as folder:
        save_weights(folder / WEIGHTS_FILE, checkpoint.model.state_dict())
        if checkpoint.vae is not None:
            save_vae(folder / TOKENIZER_FILE, checkpoint.vae)
        config = {
            "model": checkpoint.model.config.to_dict(),
            "tokenizer": checkpoint.tokenizer,
            "class_names": list(checkpoint.class_names),
            **(origin or {"imported_from": {"file": checkpoint.source, "sha256": checkpoint.sha256}}),
        }
        write_run_config(folder, config)


def _load_run(path: pathlib.Path, vae_file: pathlib.Path | None) -> Checkpoint:
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
    if vae_file is not None and tokenizer != "none":
        raise ConfigError(f"--tokenizer is for checkpoints without one; {path} has its own, {tokenizer}")
    if tokenizer == "kl":
        vae_file = path / TOKENIZER_FILE
    config, vae = ModelConfig.from_dict(arguments, where), None
    if vae_file is not None:
        vae, tokenizer = load_vae(vae_file), "kl"
        merged([PartialConfig(where, config.to_dict()), config_from_vae(vae, vae_file)], str(path))
    resumable = (path / STATE_FILE).exists()
    remedy = f"mar train --resume {path} writes it anew" if resumable else "copy it again"
    model = _filled(config, read_safetensors(weights_file, remedy), str(weights_file))
    return Checkpoint(model, tokenizer, tuple(class_names), path.name, sha256(weights_file), vae)


def _filled(config: ModelConfig, weights: Mapping[str, Tensor], source: str) -> MAR:
    with torch.device("meta"):
        model = MAR(**config.to_dict())
    fill(model, weights, source)
    return model


def _hash(files: list[pathlib.Path]) -> str:
    """The hash of a file; of several, that of their hashes."""
    digests = [sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
