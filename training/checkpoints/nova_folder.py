"""Reading of NOVA as it is published: a folder in the format of diffusers with a transformer, a scheduler and a VAE."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.checks import truncate
from runtime.errors import CheckpointError, ConfigError
from runtime.model.nova_config import SCHEDULERS, NovaConfig, NovaScheduler
from runtime.storage.schema import SchemaError, parse_object
from training.checkpoints.checkpoint import Checkpoint, hash_files
from training.checkpoints.infer_config import PartialConfig, merge_configs
from training.checkpoints.published_files import (
    DIFFUSERS_INDEX,
    VAE_FOLDER,
    load_vae,
    read_arguments,
    read_component,
    read_json_object,
)
from training.checkpoints.tensor_files import assign_weights
from training.models.nova import Nova, output_rows_channels_first

_CLASS = "NOVATransformer3DModel"
_TRANSFORMER, _SCHEDULER = "transformer", "scheduler"
_CONFIG, _SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
_ARCH = re.compile(r"(vit|mlp)_d(\d{1,3})w(\d{1,5})")
_PUBLISHED_HEADS = {768: 12, 1024: 16, 1536: 16}

# Values of a scheduler that change what it computes, and that no published NOVA has.
_PLAIN_SCHEDULER = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": False,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


def is_published(path: pathlib.Path) -> bool:
    """Return whether a folder is a pipeline of diffusers whose transformer is that of NOVA."""
    config = path / _TRANSFORMER / _CONFIG
    if not (path / DIFFUSERS_INDEX).is_file() or not config.is_file():
        return False
    return bool(read_json_object(config).get("_class_name") == _CLASS)


def load_published(
    path: pathlib.Path,
    config_file: pathlib.Path | None = None,
    *,
    latent_scale: float | None = None,
    latent_shift: float | None = None,
    autoencoder: bool = True,
) -> Checkpoint:
    """Load a NOVA for still images.

    Args:
        path: The folder of the pipeline.
        config_file: A JSON file with `heads`, where the width is not a published one.
        latent_scale: As of `load_checkpoint`.
        latent_shift: As of `load_checkpoint`.
        autoencoder: Whether the autoencoder of the folder is loaded.

    Raises:
        CheckpointError: A file is missing or damaged, or the model is another one than a NOVA for still images.
        ConfigError: Two sources of the config contradict each other, the scheduler is not known, or nothing tells the
            number of heads.
    """
    warnings: list[str] = []
    folder = path / _TRANSFORMER
    weights, files = read_component(folder, warnings.append)
    where = str(folder)
    configs = [_of_tensors(weights, where), _of_config(folder / _CONFIG)]
    if config_file is not None:
        configs.append(PartialConfig(f"--model-config {config_file}", read_arguments(config_file)))
    vae = None
    if autoencoder and (path / VAE_FOLDER).is_dir():
        vae = load_vae(path, latent_scale, latent_shift, warnings.append)
        of_vae = {"image_dim": vae.config.latent_channels, "image_stride": vae.config.stride}
        configs.append(PartialConfig(f"the autoencoder {path / VAE_FOLDER}", of_vae))
    elif latent_scale is not None or latent_shift is not None:
        raise ConfigError(f"--latent-scale and --latent-shift are for an autoencoder; {path} has none")
    scheduler = _scheduler(path / _SCHEDULER / _SCHEDULER_CONFIG)
    config = _config(merge_configs(configs, where), scheduler, where)
    with torch.device("meta"):
        model = Nova(**config.to_dict())
    assign_weights(model, _channels_first(weights, config), where)
    kind = "none" if vae is None else "kl"
    return Checkpoint(model, kind, (), path.name, hash_files(files), vae, tuple(warnings))


def _of_tensors(weights: Mapping[str, Tensor], where: str) -> PartialConfig:
    """Return the fields that follow from the names and shapes of the tensors."""
    if "label_embed.weight" in weights or "motion_embed.fps_embed.weight" in weights:
        raise CheckpointError(f"{where}: a NOVA of classes or of videos; only text to still images is supported")

    def size(name: str, axis: int) -> int:
        shape = tuple(weights[name].shape) if name in weights else ()
        if len(shape) <= axis or shape[axis] < 1:
            state = f"of shape {shape}" if name in weights else "missing"
            raise CheckpointError(f"{where}: not the parameters of a NOVA, {name} is {state}")
        return int(shape[axis])

    def count(blocks: str) -> int:
        return len({match[1] for name in weights if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))})

    return PartialConfig(
        "its tensors",
        {
            "width": size("mask_embed.mask_token", 1),
            "text_token_dim": size("text_embed.proj.weight", 1),
            "image_dim": size("image_encoder.patch_embed.proj.weight", 1),
            "patch_size": size("image_encoder.patch_embed.proj.weight", 2),
            "head_width": size("image_decoder.patch_embed.proj.weight", 0),
            "condition_depth": count("video_encoder.blocks"),
            "image_depth": count("image_encoder.blocks"),
            "head_depth": count("image_decoder.blocks"),
            "rotary": "video_pos_embed.norm.weight" not in weights,
        },
    )


def _of_config(file: pathlib.Path) -> PartialConfig:
    """Return the fields in the config of the transformer."""
    config = read_json_object(file)
    frames = config.get("video_base_size", [1])
    if not isinstance(frames, list) or not frames or frames[0] != 1:
        raise CheckpointError(
            f"{file}: a NOVA of videos (video_base_size {truncate(frames)}); only text to still images is supported"
        )
    height, width = _height_and_width(config.get("image_size"), f"{file}: image_size")
    values: dict[str, Any] = {
        "image_height": height,
        "image_width": width,
        "rotary": config.get("rotary_pos_embed", False),
    }
    for name in ("image_dim", "image_stride", "text_token_dim", "text_token_len"):
        if name not in config:
            raise CheckpointError(f"{file}: the key {name} is missing")
        values[name] = config[name]
    arch = config.get("arch")
    matches = [_ARCH.fullmatch(name) for name in arch if isinstance(name, str)] if isinstance(arch, list) else []
    if len(matches) != 3 or not all(matches):
        raise CheckpointError(
            f"{file}: arch must be three names such as vit_d16w768, vit_d32w768 and mlp_d6w768, found {truncate(arch)}"
        )
    (condition, condition_width), (image, image_width), (head, head_width) = (
        (int(match[2]), int(match[3])) for match in matches if match
    )
    if condition_width != image_width:
        raise CheckpointError(f"{file}: arch has two widths, {condition_width} and {image_width}, for its transformers")
    values |= {"condition_depth": condition, "image_depth": image, "head_depth": head}
    values |= {"width": image_width, "head_width": head_width}
    return PartialConfig(str(file), values)


def _height_and_width(size: Any, where: str) -> tuple[int, int]:
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise CheckpointError(f"{where} must be a side in pixels, or height and width, found {truncate(size)}")
    return sides[0], sides[1]


def _scheduler(file: pathlib.Path) -> NovaScheduler:
    """Return the scheduler of the folder."""
    config = read_json_object(file)
    kind = config.get("_class_name")
    if kind not in SCHEDULERS:
        raise ConfigError(f"{file}: the scheduler {truncate(kind)} is not known, only {' and '.join(SCHEDULERS)}")
    for name, plain in _PLAIN_SCHEDULER.items():
        if config.get(name, plain) != plain:
            raise ConfigError(f"{file}: {name} must be {plain}, found {truncate(config[name])}")
    fields = {field.name for field in dataclasses.fields(NovaScheduler)} - {"kind"}
    values = {name: value for name, value in config.items() if name in fields}
    try:
        return parse_object(NovaScheduler, {"kind": kind, **values}, str(file))
    except SchemaError as error:
        raise ConfigError(str(error)) from None


def _config(values: dict[str, Any], scheduler: NovaScheduler, where: str) -> NovaConfig:
    """Return the complete config, whose patch size follows from its stride."""
    if "heads" not in values:
        if values["width"] not in _PUBLISHED_HEADS:
            raise ConfigError(
                f"{where}: the tensors do not determine the number of attention heads, and no published model has the "
                f"width {values['width']}; give it with --model-config FILE.json, heads"
            )
        values["heads"] = _PUBLISHED_HEADS[values["width"]]
    patch = values.pop("patch_size")
    config = NovaConfig.from_dict({**values, "scheduler": dataclasses.asdict(scheduler)}, where)
    if patch != config.patch_size:
        raise ConfigError(
            f"{where}: its tensors have patches of {patch} latent values, but image_stride {config.image_stride} "
            f"makes {config.patch_size}"
        )
    return config


def _channels_first(weights: Mapping[str, Tensor], config: NovaConfig) -> dict[str, Tensor]:
    """Return weights whose head gives the values of a token with channels outermost.

    Other shapes than expected are left as they are; the assignment of the weights names them.
    """
    order, permuted = output_rows_channels_first(config), dict(weights)
    for name in ("image_decoder.head.weight", "image_decoder.head.bias"):
        if name in weights and len(weights[name]) == len(order):
            permuted[name] = weights[name][order]
    return permuted
