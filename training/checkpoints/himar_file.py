"""Reading of Hi-MAR as it is published: a `checkpoint-last.pth`, whose layout is MAR's with other tensors in it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError, ConfigError
from runtime.model.himar_config import FAMILY, HimarConfig
from training.checkpoints.checkpoint import Checkpoint, hash_files
from training.checkpoints.find_weights import Sought, find_weights
from training.checkpoints.infer_config import PartialConfig, count_blocks, merge_configs
from training.checkpoints.pickles import read_pickle
from training.checkpoints.published_files import (
    arguments_of,
    config_from_vae,
    load_vae,
    read_arguments,
    shapes_of,
)
from training.checkpoints.tensor_files import assign_weights, check_tensors, is_safetensors, read_safetensors
from training.models.himar import Himar
from training.models.model_sizes import MODEL_SIZES

_ANCHOR = "cond_z_proj.weight"  # a parameter that no other family has
_SOUGHT = Sought("the averaged weights of a Hi-MAR under 'model_ema'", _ANCHOR)
_FIELDS = {field.name for field in dataclasses.fields(HimarConfig)}
_RENAMED = {"head": "gdm_heads", "ratio": "gdm_ratio"}  # published arguments whose names a MAR has for other things
_PUBLISHED = {ours: published for published, ours in _RENAMED.items()}
# Attention heads -> the fields of their transformer, which has the heads of the published size that has equal ones.
_HEADS = {
    ("encoder_num_heads", "decoder_num_heads"): ("encoder_embed_dim", "encoder_depth"),
    ("gdm_heads",): ("gdm_w", "gdm_d"),
}
_SIZES = {name: fields for name, fields in MODEL_SIZES.items() if fields.get("family") == FAMILY}


def is_published(path: pathlib.Path) -> bool:
    """Return whether a file holds the weights of a Hi-MAR. A file that cannot be read is none."""
    if not path.is_file():
        return False
    try:
        content = read_safetensors(path) if is_safetensors(path) else read_pickle(path)
        find_weights(content, _SOUGHT, path)
    except CheckpointError:
        return False
    return True


def load_published(
    path: pathlib.Path,
    config_file: pathlib.Path | None = None,
    *,
    name: str | None = None,
    tokenizer: pathlib.Path | None = None,
    latent_scale: float | None = None,
    latent_shift: float | None = None,
    autoencoder: bool = True,
) -> Checkpoint:
    """Load a Hi-MAR.

    Args:
        path: The `.pth` or `.safetensors`.
        config_file: A JSON file with constructor arguments, for what neither tensors nor arguments tell.
        name: The name of a published size of a Hi-MAR, for its attention heads.
        tokenizer: As of `load_checkpoint`.
        latent_scale: As of `load_checkpoint`.
        latent_shift: As of `load_checkpoint`.
        autoencoder: As of `load_checkpoint`; the file of a Hi-MAR has none.

    Raises:
        CheckpointError: The file is damaged, or its tensors are not those of a Hi-MAR.
        ConfigError: Two sources of the config contradict each other, or none gives the attention heads.
    """
    warnings: list[str] = []
    weights, configs = _read(path, warnings.append)
    if name is not None:
        configs.append(_of_size(name, f"{path}: a Hi-MAR, but --model {name}", f"--model {name}"))
    if config_file is not None:
        configs.append(PartialConfig(f"--model-config {config_file}", _fields(read_arguments(config_file))))
    vae = None
    if tokenizer is not None:
        vae = load_vae(tokenizer, latent_scale, latent_shift, warnings.append)
        configs.append(config_from_vae(vae, tokenizer))
    elif latent_scale is not None or latent_shift is not None:
        raise ConfigError(f"--latent-scale and --latent-shift are for an autoencoder; {path} has none, add --tokenizer")
    config = _config(merge_configs(configs, str(path)), str(path))
    with torch.device("meta"):
        model = Himar(**config.to_dict())
    assign_weights(model, weights, str(path))
    kind = "none" if vae is None else "kl"
    return Checkpoint(model, kind, (), path.name, hash_files([path]), vae, tuple(warnings))


def _read(path: pathlib.Path, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], list[PartialConfig]]:
    """Return the weights in a file, and what its tensors and its arguments say of the config."""
    tensors_only = is_safetensors(path)
    content: Any = read_safetensors(path) if tensors_only else read_pickle(path)
    found = find_weights(content, _SOUGHT, path)
    if not found.averaged and found.place:
        warn(f"{path}: there are no averaged weights; those under {found.place} are taken")
    weights = check_tensors(found.weights, str(path))
    arguments = {} if tensors_only else arguments_of(content, path)
    configs = [
        _of_tensors(weights, str(path)),
        PartialConfig("the arguments it was trained with", _fields(arguments)),
    ]
    if (trained := arguments.get("model")) in _SIZES:
        configs.append(_of_size(str(trained), str(path), f"the name {trained} it was trained under"))
    return weights, configs


def _fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the config among published arguments."""
    renamed = {_RENAMED.get(name, name): value for name, value in arguments.items()}
    fields = {name: value for name, value in renamed.items() if name in _FIELDS}
    return {name: float(value) if name.endswith("_ratio") else value for name, value in fields.items()}


def _of_size(name: str, where: str, source: str) -> PartialConfig:
    """Return the fields of a published size that no tensor and no argument tells: its attention heads.

    Raises:
        ConfigError: It is the size of another family; the message begins with `where`.
    """
    if name not in _SIZES:
        raise ConfigError(f"{where} is the size of another family; known: {', '.join(_SIZES)}")
    fields = {key: value for key, value in _SIZES[name].items() if key.endswith(("_heads", "_depth"))}
    return PartialConfig(source, fields)


def _of_tensors(weights: Mapping[str, Tensor], where: str) -> PartialConfig:
    """Return the fields that follow from the names and shapes of the tensors.

    Raises:
        CheckpointError: They are not those of a Hi-MAR, or their grids are no squares.
    """
    shapes = shapes_of(weights)

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        if len(shape) <= axis or shape[axis] < 1:
            state = f"of shape {shape}" if name in shapes else "missing"
            raise CheckpointError(f"{where}: not the parameters of a Hi-MAR, {name} is {state}")
        return shape[axis]

    positions, small = size("diffusion_pos_embed_learned", 1), size("cond_tokens", 1)
    grid, side = _side(positions - small, "full", where), _side(small, "low-resolution", where)
    if size("cond_diffloss.net.pos_embed", 1) != grid**2:
        raise CheckpointError(
            f"{where}: the DiT has {size('cond_diffloss.net.pos_embed', 1)} positions, but its full grid {grid**2}"
        )
    width, hidden = size("z_proj.weight", 0), size("encoder_blocks.0.mlp.fc1.weight", 0)
    gdm_width = size("cond_diffloss.net.pos_embed", 2)
    return PartialConfig(
        "its tensors",
        {
            "grid": grid,
            "cond_scale": side,
            "class_num": size("class_emb.weight", 0),
            "buffer_size": size("encoder_pos_embed_learned", 1) // 2 - positions,
            "token_channels": size("z_proj.weight", 1),
            "encoder_embed_dim": width,
            "decoder_embed_dim": size("decoder_embed.weight", 0),
            "encoder_depth": count_blocks(shapes, "encoder_blocks"),
            "decoder_depth": count_blocks(shapes, "decoder_blocks"),
            "mlp_ratio": hidden / width,
            "diffloss_d": count_blocks(shapes, "diffloss.net.res_blocks"),
            "diffloss_w": size("diffloss.net.input_proj.weight", 0),
            "gdm_d": count_blocks(shapes, "cond_diffloss.net.blocks"),
            "gdm_w": gdm_width,
            "gdm_ratio": size("cond_diffloss.net.blocks.0.mlp.fc1.weight", 0) / gdm_width,
        },
    )


def _side(positions: int, which: str, where: str) -> int:
    side = round(max(0, positions) ** 0.5)
    if side < 1 or side**2 != positions:
        raise CheckpointError(f"{where}: the {which} grid has {positions} positions, which is no square")
    return side


def _config(values: dict[str, Any], where: str) -> HimarConfig:
    """Return the complete config; heads that no source gives are those of the published size of the same widths."""
    grid, channels = values.pop("grid"), values.pop("token_channels")
    patch, stride = values.setdefault("patch_size", 1), values.setdefault("vae_stride", HimarConfig.vae_stride)
    values.setdefault("img_size", grid * stride * patch)
    values.setdefault("vae_embed_dim", channels // patch**2)
    unknown: list[str] = []
    for names, same in _HEADS.items():
        alike = [size for size in _SIZES.values() if all(size[field] == values[field] for field in same)]
        known = {name: alike[0][name] for name in names if alike} | values
        unknown += [_PUBLISHED.get(name, name) for name in names if name not in known]
        values = known
    if unknown:
        raise ConfigError(
            f"{where}: the tensors do not determine the number of attention heads, and no published model has their "
            f"sizes; give {', '.join(unknown)} with --model-config FILE.json"
        )
    config = HimarConfig.from_dict(values, where)
    if (config.grid, config.token_channels) != (grid, channels):
        raise ConfigError(
            f"{where}: its tensors have a grid of {grid} x {grid} tokens of {channels} values, but img_size "
            f"{config.img_size}, vae_stride {config.vae_stride}, patch_size {config.patch_size} and vae_embed_dim "
            f"{config.vae_embed_dim} make {config.grid} x {config.grid} of {config.token_channels}"
        )
    return config
