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

from runtime.config import ModelConfig
from runtime.errors import CheckpointError, ConfigError
from training.presets import PRESETS

Shapes = Mapping[str, tuple[int, ...]]

_FIELDS = {field.name for field in dataclasses.fields(ModelConfig)}


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one source says: fields of `ModelConfig` by name. `source` completes "depth is 12 by ..."."""

    source: str
    values: Mapping[str, Any]


def agreed_config(claims: list[Claim], shapes: Shapes, where: str) -> ModelConfig:
    """The config that all `claims` and the tensors of `shapes` agree on; what none tells is as published.

    Raises `ConfigError` naming both sides of a contradiction, and `CheckpointError` where the tensors
    are not those of a MAR model.
    """
    values = merged([tensor_claim(shapes, where), *claims], where)
    for name in ("patch_size", "vae_stride", "vae_embed_dim"):  # what the rest is worked out from
        if name in values and (type(values[name]) is not int or values[name] < 1):
            raise ConfigError(f"{where}: {name} must be a whole number from 1, found {values[name]!r}")
    values = {**_usual_layout(values, shapes), **_usual_heads(values, where), **values}
    config = ModelConfig.from_dict(values, where)
    _check_layout(config, shapes, where)
    return config


def merged(claims: list[Claim], where: str) -> dict[str, Any]:
    """All that `claims` tell. Raises `ConfigError` naming both sides of a contradiction."""
    told: dict[str, tuple[Any, str]] = {}
    for claim in claims:
        for name, value in claim.values.items():
            known, source = told.setdefault(name, (value, claim.source))
            if known != value:
                raise ConfigError(f"{where}: {name} is {known} by {source}, but {value} by {claim.source}")
    return {name: value for name, (value, _) in told.items()}


def tensor_claim(shapes: Shapes, where: str) -> Claim:
    """What the names and shapes of the parameters tell."""
    try:
        encoder, decoder = shapes["z_proj.weight"][0], shapes["decoder_embed.weight"][0]
        values = {
            "class_num": shapes["class_emb.weight"][0],
            "buffer_size": shapes["encoder_pos_embed_learned"][1] - shapes["diffusion_pos_embed_learned"][1],
            "encoder_embed_dim": encoder,
            "encoder_depth": _count(shapes, "encoder_blocks"),
            "decoder_embed_dim": decoder,
            "decoder_depth": _count(shapes, "decoder_blocks"),
            "mlp_ratio": shapes["encoder_blocks.0.mlp.fc1.weight"][0] / encoder,
            "diffloss_d": _count(shapes, "diffloss.net.res_blocks"),
            "diffloss_w": shapes["diffloss.net.input_proj.weight"][0],
        }
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: not the parameters of a MAR model (no {error} of the usual shape)") from None
    return Claim("its tensors", values)


def named_claim(name: str, source: str) -> Claim:
    """What the name of a published model tells: its transformer. The head is given apart from it, as published."""
    if name not in PRESETS:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(PRESETS)}")
    transformer = {key: value for key, value in PRESETS[name].items() if key.startswith(("encoder_", "decoder_"))}
    return Claim(source, transformer)


def argument_claims(arguments: Mapping[str, Any]) -> list[Claim]:
    """What the arguments of a published training run tell: those of the constructor, and the model's name."""
    values = {name: value for name, value in arguments.items() if name in _FIELDS}
    claims = [Claim("the arguments it was trained with", values)]
    if arguments.get("model") in PRESETS:
        claims.append(named_claim(arguments["model"], f"the name {arguments['model']} it was trained under"))
    return claims


def _count(shapes: Shapes, blocks: str) -> int:
    return len({found[1] for name in shapes if (found := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))})


def _usual_layout(values: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """How latents make tokens, where nothing tells: patches of one latent, pixels by the tokenizer's stride."""
    tokens, channels = shapes["diffusion_pos_embed_learned"][1], shapes["z_proj.weight"][1]
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
    for sizes in PRESETS.values():
        same = {name: size for name, size in sizes.items() if name.endswith(("coder_embed_dim", "coder_depth"))}
        if same.items() <= values.items():
            return {name: size for name, size in sizes.items() if name.endswith("num_heads")}
    raise ConfigError(
        f"{where}: its tensors do not tell the number of attention heads, and no published model has their sizes; "
        "give it with --config FILE.json, encoder_num_heads and decoder_num_heads"
    )


def _check_layout(config: ModelConfig, shapes: Shapes, where: str) -> None:
    tokens, channels = shapes["diffusion_pos_embed_learned"][1], shapes["z_proj.weight"][1]
    if config.tokens != tokens:
        raise ConfigError(
            f"{where}: has position embeddings of {tokens} tokens, but img_size {config.img_size} / vae_stride "
            f"{config.vae_stride} / patch_size {config.patch_size} makes {config.tokens}"
        )
    if config.token_channels != channels:
        raise ConfigError(
            f"{where}: has tokens of {channels} values, but vae_embed_dim {config.vae_embed_dim} x patch_size "
            f"{config.patch_size}^2 makes {config.token_channels}"
        )
