"""Inference of a published model's config from all that is known of it: tensors, arguments, a size name, a config.

The shapes of the tensors are certain, so they come first. What they do not determine (the number of attention heads,
the stride of the autoencoder) comes from the other sources. Sources that contradict each other are an error.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from runtime.checks import truncate
from runtime.errors import CheckpointError, ConfigError
from runtime.model.config import ModelConfig, check_renamed_fields
from runtime.model.families import FAMILY_KEY
from training.models.model_sizes import MODEL_SIZES

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each parameter, by name."""

# Parameters whose shapes give the number of values of a token, and the width of the feed-forward layers.
_TOKENS, _HIDDEN = "z_proj.weight", "encoder_blocks.0.mlp.fc1.weight"

_CLASSES = "class_emb.weight"
_PUBLISHED_CLASSES = 1000  # the rows that the published code always made before it was mended

_FIELDS = {field.name for field in dataclasses.fields(ModelConfig)}
_SIZES = {name: fields for name, fields in MODEL_SIZES.items() if FAMILY_KEY not in fields}
"""The sizes of a MAR."""


@dataclasses.dataclass(frozen=True)
class PartialConfig:
    """Some fields of a model's config, from one source.

    Attributes:
        source: The source as a message names it; it completes "depth is 12 by ...".
        values: Fields of `ModelConfig`, by name.
    """

    source: str
    values: Mapping[str, Any]


def infer_config(configs: list[PartialConfig], shapes: Shapes, where: str) -> ModelConfig:
    """Return the config that agrees with all sources; a field that none of them gives is as published.

    Args:
        configs: What each source says.
        shapes: The shapes of the model's tensors.
        where: The checkpoint, for messages.

    Raises:
        ConfigError: Two sources contradict each other, which the message names, or none gives the number of heads.
        CheckpointError: The tensors are not those of a MAR model.
    """
    for config in configs:
        check_renamed_fields(config.values, f"{where}, {config.source}")
        if unknown := sorted(config.values.keys() - _FIELDS):
            raise ConfigError(
                f"{where}, {config.source}: unknown model config keys {', '.join(unknown)}; "
                f"known: {', '.join(sorted(_FIELDS))}"
            )
    merged = _merge([config_from_tensors(shapes, where), *configs], where)
    values = {name: value for name, (value, _) in merged.items()}
    for name in ("patch_size", "vae_stride", "vae_embed_dim"):  # other fields are computed from these
        if name in values and (type(values[name]) is not int or values[name] < 1):
            raise ConfigError(
                f"{where}: {name} must be a whole number from 1, found {truncate(values[name])} by {merged[name][1]}"
            )
    values = {**_default_layout(values, shapes), **_mlp_ratio(shapes), **_default_heads(values, where), **values}
    result = ModelConfig.from_dict(values, " and ".join([where, *(config.source for config in configs)]))
    _check_layout(result, shapes, {name: source for name, (_, source) in merged.items()}, where)
    return result


def without_unused_classes(
    weights: Mapping[str, Tensor], configs: list[PartialConfig], where: str, warn: Callable[[str], None]
) -> Mapping[str, Tensor]:
    """Return weights without the classes that no image was trained on.

    The published code once embedded 1000 classes, whatever `class_num` was; the rows from `class_num` were never used.
    """
    classes = next((config.values["class_num"] for config in configs if "class_num" in config.values), None)
    embedding = weights.get(_CLASSES)
    if embedding is None or type(classes) is not int or embedding.dim() == 0:
        return weights
    if embedding.shape[0] != _PUBLISHED_CLASSES or not 0 < classes < _PUBLISHED_CLASSES:
        return weights
    warn(
        f"{where}: {_CLASSES} has {_PUBLISHED_CLASSES} rows and class_num is {classes}; the rows from {classes} are "
        "dropped, which earlier published code made and never used"
    )
    return {**weights, _CLASSES: embedding[:classes].clone()}


def merge_configs(configs: list[PartialConfig], where: str) -> dict[str, Any]:
    """Return the fields of all sources together.

    Raises:
        ConfigError: Two sources contradict each other; the message names both, and the checkpoint `where`.
    """
    return {name: value for name, (value, _) in _merge(configs, where).items()}


def _merge(configs: list[PartialConfig], where: str) -> dict[str, tuple[Any, str]]:
    """Return the fields of all sources together, each with its source."""
    merged: dict[str, tuple[Any, str]] = {}
    for config in configs:
        for name, value in config.values.items():
            known, source = merged.setdefault(name, (value, config.source))
            if not isinstance(value, (bool, int, float, str, type(None))):
                raise ConfigError(
                    f"{where}: {name} must be a number or a text, found {truncate(value)} by {config.source}"
                )
            if known != value:
                raise ConfigError(
                    f"{where}: {name} is {truncate(known)} by {source}, but {truncate(value)} by {config.source}"
                )
    return merged


def config_from_tensors(shapes: Shapes, where: str) -> PartialConfig:
    """Return the fields that follow from the names and shapes of the parameters.

    Raises:
        CheckpointError: They are not those of a MAR model; the message names the checkpoint `where`.
    """
    positions = [_size(shapes, f"{part}_pos_embed_learned", 1, where) for part in ("encoder", "diffusion")]
    values = {
        "class_num": _size(shapes, "class_emb.weight", 0, where),
        "buffer_size": positions[0] - positions[1],
        "encoder_embed_dim": _size(shapes, "z_proj.weight", 0, where),
        "encoder_depth": count_blocks(shapes, "encoder_blocks"),
        "decoder_embed_dim": _size(shapes, "decoder_embed.weight", 0, where),
        "decoder_depth": count_blocks(shapes, "decoder_blocks"),
        "diffloss_d": count_blocks(shapes, "diffloss.net.res_blocks"),
        "diffloss_w": _size(shapes, "diffloss.net.input_proj.weight", 0, where),
    }
    for name, axis in ((_TOKENS, 1), (_HIDDEN, 0)):  # they determine a field only together with other values
        _size(shapes, name, axis, where)
    return PartialConfig("its tensors", values)


def config_from_size_name(name: str, source: str) -> PartialConfig:
    """Return the fields that the name of a published size gives: those of its transformer.

    The published code takes the size of the head from other arguments.

    Raises:
        ConfigError: There is no such size.
    """
    if name not in _SIZES:
        problem = (
            f"{source}: the size of another family than a MAR" if name in MODEL_SIZES else f"unknown model {name!r}"
        )
        raise ConfigError(f"{problem}; known: {', '.join(_SIZES)}")
    transformer = {key: value for key, value in _SIZES[name].items() if key.startswith(("encoder_", "decoder_"))}
    return PartialConfig(source, transformer)


def configs_from_arguments(arguments: Mapping[str, Any]) -> list[PartialConfig]:
    """Return the fields in the arguments of a published training run: constructor arguments, and the size's name."""
    values = {name: value for name, value in arguments.items() if name in _FIELDS}
    configs = [PartialConfig("the arguments it was trained with", values)]
    name = arguments.get("model")
    if isinstance(name, str) and name in _SIZES:
        configs.append(config_from_size_name(name, f"the name {name} it was trained under"))
    return configs


def _size(shapes: Shapes, name: str, axis: int, where: str) -> int:
    """Return the size of one axis of a parameter. Raises `CheckpointError` where it has none."""
    shape = shapes.get(name, ())
    if len(shape) <= axis or shape[axis] < 1:
        state = f"of shape {shape}" if name in shapes else "missing"
        raise CheckpointError(f"{where}: not the parameters of a MAR model, {name} is {state}")
    return shape[axis]


def count_blocks(shapes: Shapes, blocks: str) -> int:
    """Return the number of blocks of a list of blocks."""
    return len({match[1] for name in shapes if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))})


def _default_layout(values: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return the layout of tokens, with defaults where no source gives it: the published stride, square patches."""
    tokens, channels = shapes["diffusion_pos_embed_learned"][1], shapes[_TOKENS][1]
    latents = values.get("vae_embed_dim", channels)
    patch = values.get("patch_size", max(1, math.isqrt(channels // latents)))
    stride = values.get("vae_stride", ModelConfig.vae_stride)
    return {
        "patch_size": patch,
        "vae_stride": stride,
        "vae_embed_dim": channels // patch**2,
        "img_size": math.isqrt(tokens) * stride * patch,
    }


def _default_heads(values: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return the numbers of heads of the published size with the same widths and depths, where no source gives them."""
    if {"encoder_num_heads", "decoder_num_heads"} <= values.keys():
        return {}
    for sizes in _SIZES.values():
        dimensions = {name: size for name, size in sizes.items() if name.endswith(("coder_embed_dim", "coder_depth"))}
        if dimensions.items() <= values.items():
            return {name: size for name, size in sizes.items() if name.endswith("num_heads")}
    raise ConfigError(
        f"{where}: the tensors do not determine the number of attention heads, and no published model has their sizes; "
        "give it with --model-config FILE.json, encoder_num_heads and decoder_num_heads"
    )


def _mlp_ratio(shapes: Shapes) -> dict[str, float]:
    """Return the smallest mlp_ratio that gives feed-forward layers of the tensors' width.

    Several ratios give it, since the width is rounded; another source may therefore name another ratio.
    """
    hidden, width = shapes[_HIDDEN][0], shapes[_TOKENS][0]
    ratio = hidden / width
    return {"mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)}


def _check_layout(config: ModelConfig, shapes: Shapes, sources: Mapping[str, str], where: str) -> None:
    """Check the sizes that follow from several fields together; `sources` names the source of each field."""

    def field(name: str) -> str:
        return f"{name} {getattr(config, name)}" + (f" (by {sources[name]})" if name in sources else "")

    layout = " / ".join(field(name) for name in ("img_size", "vae_stride", "patch_size"))
    channels = f"{field('vae_embed_dim')} x the square of {field('patch_size')}"
    hidden = f"{field('encoder_embed_dim')} x {field('mlp_ratio')}"
    hidden_width = int(config.encoder_embed_dim * config.mlp_ratio)
    for what, size, expected, reason in (
        ("position embeddings of", shapes["diffusion_pos_embed_learned"][1], config.tokens, f"tokens, but {layout}"),
        ("tokens of", shapes[_TOKENS][1], config.token_channels, f"values, but {channels}"),
        ("feed-forward layers of", shapes[_HIDDEN][0], hidden_width, f"values, but {hidden}"),
    ):
        if size != expected:
            raise ConfigError(f"{where}: its tensors have {what} {size} {reason} makes {expected}")
