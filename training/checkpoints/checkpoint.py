"""Reading and writing of checkpoints: the folders of runs, and the files and folders of published models."""

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

from runtime.artifact.manifest import TOKENIZERS
from runtime.checks import truncate
from runtime.errors import CheckpointError, ConfigError
from runtime.model.families import DEFAULT, FAMILIES, Family, family_of, imported, parse_config
from runtime.model.family_config import FamilyConfig
from runtime.storage.files import replacing, replacing_folder, sha256, write_json
from training.checkpoints.infer_config import (
    PartialConfig,
    config_from_size_name,
    infer_config,
    merge_configs,
    without_unused_classes,
)
from training.checkpoints.latent_scale import SCALE_KEY, SHIFT_KEY, SOURCE_KEY
from training.checkpoints.published_files import (
    NORM_GROUPS_KEY,
    config_from_vae,
    is_diffusers_folder,
    load_vae,
    read_arguments,
    read_published,
    shapes_of,
)
from training.checkpoints.run_folder import CONFIG_FILE, STATE_FILE, TOKENIZER_FILE, WEIGHTS_FILE, read_run_config
from training.checkpoints.tensor_files import (
    assign_weights,
    hash_metadata,
    read_metadata,
    read_safetensors,
    sort_metadata,
    tensors_sha256,
)
from training.models.autoencoder import AutoencoderKL

_COUNT_DIGITS = 18


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model, and what is needed to generate images with it.

    Attributes:
        model: The model with its averaged weights, in evaluation mode: a MAR, or the model of another family where
            that was asked for.
        tokenizer: One of `runtime.artifact.manifest.TOKENIZERS`.
        class_names: The name of each class; empty where they are unknown.
        source: The name of the file or folder of the weights.
        sha256: The SHA-256 of the file of the weights; of several files, that of their hashes.
        vae: The autoencoder where `tokenizer` is `kl`, otherwise None.
        warnings: What a person should know about the files, one line each.
    """

    model: Any
    tokenizer: str
    class_names: tuple[str, ...]
    source: str
    sha256: str
    vae: AutoencoderKL | None = None
    warnings: tuple[str, ...] = ()


def save_weights(path: pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file completely or not at all, with a hash of its content, which reading compares.

    Args:
        path: The file.
        tensors: The tensors by name.
        metadata: Texts for the header of the file.

    Raises:
        OSError: The file could not be written.
    """
    with replacing(path) as temporary:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, hash_metadata(contiguous, metadata or {}))
            sort_metadata(temporary)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error


def save_vae(path: pathlib.Path, vae: AutoencoderKL) -> None:
    """Write an autoencoder for `load_vae` to read; the header has what no shape tells: groups and latent scale."""
    header = {
        NORM_GROUPS_KEY: str(vae.config.norm_groups),
        SCALE_KEY: repr(vae.latent_scale),
        SHIFT_KEY: repr(vae.latent_shift),
        SOURCE_KEY: vae.scale_source,
    }
    save_weights(path, vae.state_dict(), header)


def load_into(module: nn.Module, path: pathlib.Path) -> None:
    """Copy the weights of a file into a module.

    Raises:
        CheckpointError: The file is missing or damaged, or its tensors are not those of the module.
    """
    try:
        module.load_state_dict(read_safetensors(path, "delete it", own=True))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: not the weights of this {type(module).__name__}; delete it ({error})"
        ) from error


def saved_step(path: pathlib.Path) -> int | None:
    """Return the training step at which a file was saved; None if it is missing, damaged or names no step."""
    return parse_count(read_metadata(path).get("step", ""))


def parse_count(text: str) -> int | None:
    """Return the whole number from 0 in a header; None for any other text."""
    return int(text) if text.isdecimal() and len(text) <= _COUNT_DIGITS else None


def write_run_config(run: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Write the config of a run into its folder."""
    write_json(run / CONFIG_FILE, config)


def load_checkpoint(
    path: pathlib.Path,
    config_file: pathlib.Path | None = None,
    *,
    name: str | None = None,
    tokenizer: pathlib.Path | None = None,
    latent_scale: float | None = None,
    latent_shift: float | None = None,
    autoencoder: bool = True,
    any_family: bool = False,
) -> Checkpoint:
    """Load the averaged weights of a run, a published `.pth` or `.safetensors`, or a folder in the format of diffusers.

    A run has its config. The config of other models is inferred from the tensors and from the arguments in the file;
    `name` and `config_file` give what these do not determine. Weights are memory-mapped.

    Args:
        path: The folder or file.
        config_file: A JSON file with constructor arguments.
        name: The name of a published model size.
        tokenizer: The file or folder of a KL autoencoder.
        latent_scale: The factor that gives the latents of that autoencoder unit variance, if its file has another.
        latent_shift: What is subtracted from these latents before, if its file has another.
        autoencoder: Whether the autoencoder that the folder has is loaded; without it, this is a model of latents.
        any_family: Whether the model may be of another family than MAR, see `runtime.model.families`.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: Two sources of the config contradict each other, or none gives a value.
    """
    family = _family_of_published(path)
    if family is not None:
        if not any_family:
            raise _another_family(path, family)
        scale = {"latent_scale": latent_scale, "latent_shift": latent_shift, "autoencoder": autoencoder}
        return _load_of_family(family, path, config_file, {"name": name, "tokenizer": tokenizer}, scale)
    if path.is_dir() and not is_diffusers_folder(path):
        read_run_config(path)
        for option, value in (("--model-config", config_file), ("--model", name)):
            if value is not None:
                raise ConfigError(
                    f"{option} is for checkpoints without a config, but {path} has its own {CONFIG_FILE}; remove it"
                )
        run = _load_run(path, tokenizer, latent_scale, latent_shift, autoencoder)
        if not any_family and family_of(run.model.config).model != FAMILIES[DEFAULT].model:
            raise _another_family(path, family_of(run.model.config))
        return run
    return _load_published(path, config_file, name, tokenizer, latent_scale, latent_shift, autoencoder)


def _load_of_family(
    family: Family,
    path: pathlib.Path,
    config_file: pathlib.Path | None,
    named: Mapping[str, Any],
    scale: Mapping[str, Any],
) -> Checkpoint:
    """Load a published checkpoint of another family than MAR; `named` and `scale` are those of `load_checkpoint`."""
    given = {argument: value for argument, value in named.items() if value is not None}
    for argument in given:
        if argument not in family.published_arguments:
            option = {"name": "--model"}.get(argument, f"--{argument}")
            raise ConfigError(f"{option} is for checkpoints of a MAR, but {path} is a {family.kind}; remove it")
    loaded: Checkpoint = imported(str(family.published)).load_published(path, config_file, **given, **scale)
    return loaded


def _another_family(path: pathlib.Path, family: Family) -> CheckpointError:
    return CheckpointError(f"{path}: a {family.kind}, which this command does not support; mar export does")


def _family_of_published(path: pathlib.Path) -> Family | None:
    """Return the family whose published checkpoints look like `path`; None for a MAR, and for a run."""
    known = (family for family in FAMILIES.values() if family.published is not None)
    return next((family for family in known if imported(str(family.published)).is_published(path)), None)


def _load_published(
    path: pathlib.Path,
    config_file: pathlib.Path | None,
    name: str | None,
    tokenizer: pathlib.Path | None,
    latent_scale: float | None,
    latent_shift: float | None,
    autoencoder: bool,
) -> Checkpoint:
    warnings: list[str] = []
    published = read_published(path, warnings.append)
    configs = list(published.configs)
    if name is not None:
        configs.append(config_from_size_name(name, f"--model {name}"))
    if config_file is not None:
        configs.append(PartialConfig(f"--model-config {config_file}", read_arguments(config_file)))
    vae = None
    if (tokenizer := tokenizer or (published.tokenizer if autoencoder else None)) is not None:
        vae = load_vae(tokenizer, latent_scale, latent_shift, warnings.append)
        configs.append(config_from_vae(vae, tokenizer))
    elif latent_scale is not None or latent_shift is not None:
        raise ConfigError(f"--latent-scale and --latent-shift are for an autoencoder; {path} has none, add --tokenizer")
    weights = without_unused_classes(published.weights, configs, str(path), warnings.append)
    config = infer_config(configs, shapes_of(weights), str(path))
    model = _build_model(config, weights, str(path))
    kind = "none" if vae is None else "kl"
    return Checkpoint(model, kind, (), path.name, hash_files(published.files), vae, tuple(warnings))


def imported_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the config of the run that `save_run` writes, which says what the model was imported from."""
    origin = {"file": checkpoint.source, "sha256": checkpoint.sha256}
    if checkpoint.vae is not None:
        origin["latent_scale"] = checkpoint.vae.describe_scale()
        origin["tokenizer_sha256"] = tensors_sha256(checkpoint.vae.state_dict())
    return {
        "model": checkpoint.model.config.to_dict(),
        "tokenizer": checkpoint.tokenizer,
        "class_names": list(checkpoint.class_names),
        "imported_from": origin,
    }


def save_run(run: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the folder of a run, completely or not at all, for `load_checkpoint` to read."""
    with replacing_folder(run) as folder:
        save_weights(folder / WEIGHTS_FILE, checkpoint.model.state_dict())
        if checkpoint.vae is not None:
            save_vae(folder / TOKENIZER_FILE, checkpoint.vae)
        write_run_config(folder, imported_config(checkpoint))


def read_class_names(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the names of the classes in the config of a run.

    Raises:
        CheckpointError: The config has none, or they are no texts; the message names `where`.
    """
    if "class_names" not in config:
        raise CheckpointError(f"{where}: the key 'class_names' is missing")
    names = config["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{where}: class_names must be a list of texts, found {truncate(names)}")
    return tuple(names)


def _load_run(
    path: pathlib.Path,
    vae_file: pathlib.Path | None,
    latent_scale: float | None,
    latent_shift: float | None,
    autoencoder: bool,
) -> Checkpoint:
    run = read_run_config(path)
    where, weights_file = f"{path / CONFIG_FILE}", path / WEIGHTS_FILE
    try:
        arguments, tokenizer, class_names = run["model"], run["tokenizer"], read_class_names(run, where)
    except KeyError as error:
        raise CheckpointError(f"{where}: the key {error} is missing") from None
    if tokenizer not in TOKENIZERS:
        raise CheckpointError(f"{where}: tokenizer {tokenizer!r} is not one of {', '.join(TOKENIZERS)}")
    if vae_file is not None and tokenizer != "none":
        raise ConfigError(f"--tokenizer is for checkpoints without one; {path} has its own, {tokenizer}")
    if vae_file is None and (latent_scale is not None or latent_shift is not None):
        raise ConfigError(f"--latent-scale and --latent-shift belong to --tokenizer; the scale of {path} is fixed")
    if tokenizer == "kl" and not autoencoder:
        tokenizer = "none"
    elif tokenizer == "kl":
        vae_file = path / TOKENIZER_FILE
    config, vae = _run_config(arguments, where), None
    warnings: list[str] = []
    if vae_file is not None:
        vae, tokenizer = load_vae(vae_file, latent_scale, latent_shift, warnings.append), "kl"
        merge_configs([PartialConfig(where, config.to_dict()), config_from_vae(vae, vae_file)], str(path))
    resumable = (path / STATE_FILE).exists()
    remedy = f"mar train --resume {path} writes it again" if resumable else "copy it again"
    model = _build_model(config, read_safetensors(weights_file, remedy, own=True), str(weights_file))
    digest = sha256(weights_file)
    return Checkpoint(model, tokenizer, class_names, path.name, digest, vae, tuple(warnings))


def _run_config(values: Any, where: str) -> FamilyConfig:
    """Return the config of a run's model, of any family."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: a model config must be a JSON object, found {type(values).__name__}")
    return parse_config(values, where)


def _build_model(config: FamilyConfig, weights: Mapping[str, Tensor], source: str) -> Any:
    with torch.device("meta"):
        model = imported(family_of(config).model)(**config.to_dict())
    assign_weights(model, weights, source)
    return model


def hash_files(files: list[pathlib.Path]) -> str:
    """Return the SHA-256 of a file; of several files, that of their hashes."""
    digests = [sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
