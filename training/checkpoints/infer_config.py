"""The shape of a published model, from whatever tells it: tensors, arguments, a name, a config.

Tensors cannot lie about themselves, so they come first; what they cannot tell (heads of attention, the
stride of the tokenizer) comes from the others. Two that contradict each other are an error.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from runtime.errors import CheckpointError, ConfigError
from runtime.model.config import ModelConfig
from training.models.model_sizes import MODEL_SIZES

Shapes = Mapping[str, tuple[int, ...]]

# Parameters whose shapes tell how many values a token has, and how wide the layers between attention are.
_TOKENS, _HIDDEN = "z_proj.weight", "encoder_blocks.0.mlp.fc1.weight"

_FIELDS = {field.name for field in dataclasses.fields(ModelConfig)}


@dataclasses.dataclass(frozen=True)
class PartialConfig:
    """What one source says: fields of `ModelConfig` by name. `source` completes "depth is 12 by ..."."""

    source: str
    values: Mapping[str, Any]


def infer_config(claims: list[PartialConfig], shapes: Shapes, where: str) -> ModelConfig:
    """The config that all `claims` and the tensors of `shapes` agree on; what none tells is as published.

    Raises `ConfigError` naming both sides of a contradiction, and `CheckpointError` where the tensors
    are not those of a MAR model.
    """
    for claim in claims:
        if unknown := sorted(claim.values.keys() - _FIELDS):
            raise ConfigError(
                f"{where}, {claim.source}: unknown model config keys {', '.join(unknown)}; "
                f"known: {', '.join(sorted(_FIELDS))}"
            )
    told = _told([config_from_tensors(shapes, where), *claims], where)
    values = {name: value for name, (value, _) in told.items()}
    for name in ("patch_size", "vae_stride", "vae_embed_dim"):  # what the rest is worked out from
        if name in values and (type(values[name]) is not int or values[name] < 1):
            raise ConfigError(
                f"{where}: {name} must be a whole number from 1, found {values[name]!r} by {told[name][1]}"
            )
    values = {**_usual_layout(values, shapes), **_usual_ratio(shapes), **_usual_heads(values, where), **values}
    config = ModelConfig.from_dict(values, " and ".join([where, *(claim.source for claim in claims)]))
    _check_layout(config, shapes, {name: source for name, (_, source) in told.items()}, where)
    return config


def merged(claims: list[PartialConfig], where: str) -> dict[str, Any]:
    """All that `claims` tell. Raises `ConfigError` naming both sides of a contradiction."""
    return {name: value for name, (value, _) in _told(claims, where).items()}


def _told(claims: list[PartialConfig], where: str) -> dict[str, tuple[Any, str]]:
    """All that `claims` tell, each with its source."""
    told: dict[str, tuple[Any, str]] = {}
    for claim in claims:
        for name, value in claim.values.items():
            known, source = told.setdefault(name, (value, claim.source))
            if known != value:
                raise ConfigError(f"{where}: {name} is {known!r} by {source}, but {value!r} by {claim.source}")
    return told


def config_from_tensors(shapes: Shapes, where: str) -> PartialConfig:
    """What the names and shapes of the parameters tell."""
    positions = [_size(shapes, f"{part}_pos_embed_learned", 1, where) for part in ("encoder", "diffusion")]
    values = {
        "class_num": _size(shapes, "class_emb.weight", 0, where),
        "buffer_size": positions[0] - positions[1],
        "encoder_embed_dim": _size(shapes, "z_proj.weight", 0, where),
        "encoder_depth": _count(shapes, "encoder_blocks"),
        "decoder_embed_dim": _size(shapes, "decoder_embed.weight", 0, where),
        "decoder_depth": _count(shapes, "decoder_blocks"),
        "diffloss_d": _count(shapes, "diffloss.net.res_blocks"),
        "diffloss_w": _size(shapes, "diffloss.net.input_proj.weight", 0, where),
    }
    for name, axis in ((_TOKENS, 1), (_HIDDEN, 0)):  # these say something together with other values only
        _size(shapes, name, axis, where)
    return PartialConfig("its tensors", values)


def config_from_size_name(name: str, source: str) -> PartialConfig:
    """What the name of a published model tells: its transformer. The head is given apart from it, as published."""
    if name not in MODEL_SIZES:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(MODEL_SIZES)}")
    transformer = {key: value for key, value in MODEL_SIZES[name].items() if key.startswith(("encoder_", "decoder_"))}
    return PartialConfig(source, transformer)


def configs_from_arguments(arguments: Mapping[str, Any]) -> list[PartialConfig]:
    """What the arguments of a published training run tell: those of the constructor, and the model's name."""
    values = {name: value for name, value in arguments.items() if name in _FIELDS}
    claims = [PartialConfig("the arguments it was trained with", values)]
    name = arguments.get("model")
    if isinstance(name, str) and name in MODEL_SIZES:
        claims.append(config_from_size_name(name, f"the name {name} it was trained under"))
    return claims


def _size(shapes: Shapes, name: str, axis: int, where: str) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis or shape[axis] < 1:
        found = f"of shape {shape}" if name in shapes else "missing"
        raise CheckpointError(f"{where}: not the parameters of a MAR model, {name} is {found}")
    return shape[axis]


def _count(shapes: Shapes, blocks: str) -> int:
    return len({found[1] for name in shapes if (found := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))})


def _usual_layout(values: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """How latents make tokens, where nothing tells: patches of one latent, pixels by the tokenizer's stride."""
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


def _usual_heads(values: Mapping[str, Any], where: str) -> dict[str, int]:
    """The heads of a published model of the same width and depth, where nothing tells them."""
    if {"encoder_num_heads", "decoder_num_heads"} <= values.keys():
        return {}
    for sizes in MODEL_SIZES.values():
        same = {name: size for name, size in sizes.items() if name.endswith(("coder_embed_dim", "coder_depth"))}
        if same.items() <= values.items():
            return {name: size for name, size in sizes.items() if name.endswith("num_heads")}
    raise ConfigError(
        f"{where}: its tensors do not tell the number of attention heads, and no published model has their sizes; "
        "give it with --config FILE.json, encoder_num_heads and decoder_num_heads"
    )


def _usual_ratio(shapes: Shapes) -> dict[str, float]:
    """The least ratio that makes layers as wide as these. Several do, so tensors cannot contradict the others."""
    hidden, width = shapes[_HIDDEN][0], shapes[_TOKENS][0]
    ratio = hidden / width
    return {"mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)}


def _check_layout(config: ModelConfig, shapes: Shapes, sources: Mapping[str, str], where: str) -> None:
    """Compare what the tensors tell only of several values together. `sources`: who told which value."""

    def told(name: str) -> str:
        return f"{name} {getattr(config, name)}" + (f" (by {sources[name]})" if name in sources else "")

    layout = " / ".join(told(name) for name in ("img_size", "vae_stride", "patch_size"))
    channels = f"{told('vae_embed_dim')} x the square of {told('patch_size')}"
    hidden = f"{told('encoder_embed_dim')} x {told('mlp_ratio')}"
    made = int(config.encoder_embed_dim * config.mlp_ratio)
    for what, found, expected, reason in (
        ("position embeddings of", shapes["diffusion_pos_embed_learned"][1], config.tokens, f"tokens, but {layout}"),
        ("tokens of", shapes[_TOKENS][1], config.token_channels, f"values, but {channels}"),
        ("feed-forward layers of", shapes[_HIDDEN][0], made, f"values, but {hidden}"),
    ):
        if found != expected:
            raise ConfigError(f"{where}: its tensors have {what} {found} {reason} makes {expected}")
