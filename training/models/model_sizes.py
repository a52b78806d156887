"""The named sizes of models."""

from __future__ import annotations

from typing import Any

from runtime.errors import ConfigError
from runtime.model.families import FAMILIES, parse_config
from runtime.model.nova_config import FLOW


def _transformer(width: int, depth: int, heads: int) -> dict[str, int]:
    return {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("embed_dim", width), ("depth", depth), ("num_heads", heads))
    }


def _himar(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {"family": "himar", **_transformer(width, depth, heads)}


def _dit(depth: int, width: int, heads: int) -> dict[str, int]:
    return {"gdm_d": depth, "gdm_w": width, "gdm_heads": heads}


def _nova(width: int, condition_depth: int, image_depth: int, heads: int) -> dict[str, Any]:
    """Return a NOVA of pixels with a flow; its tokens are squares of 16 x 16."""
    return {
        "family": "nova",
        **FAMILIES["nova"].from_data,
        "image_stride": 1,
        "width": width,
        "heads": heads,
        "condition_depth": condition_depth,
        "image_depth": image_depth,
        "head_width": 1024,  # more than the 768 values of a token: a narrower head cannot pass on their noise
        "head_depth": 3,
        "rotary": False,
        "scheduler": {"kind": FLOW, "shift": 12.0},  # a square can be told from another until it is nearly all noise
    }


def _uva(width: int, depth: int, heads: int, head_width: int, head_depth: int) -> dict[str, Any]:
    sizes = {"diffloss_act_w": head_width, "diffloss_act_d": head_depth}
    return {"family": "uva", **FAMILIES["uva"].from_data, **_transformer(width, depth, heads), **sizes}


# For small gray images on a CPU: tokens are patches of 4x4 pixels.
_SMALL_GRAY: dict[str, Any] = {
    "img_size": 32,
    "vae_stride": 1,
    "patch_size": 4,
    "vae_embed_dim": 1,
    "class_num": 10,
    "buffer_size": 8,
    "diffloss_d": 3,
    "diffloss_w": 224,
    "diffusion_batch_mul": 2,
    "attn_dropout": 0.0,
    "proj_dropout": 0.0,
}

# The first three are published (arXiv 2406.11838, table 4).
MODEL_SIZES: dict[str, dict[str, Any]] = {
    "mar_base": {**_transformer(768, 12, 12), "diffloss_d": 6, "diffloss_w": 1024},
    "mar_large": {**_transformer(1024, 16, 16), "diffloss_d": 8, "diffloss_w": 1280},
    "mar_huge": {**_transformer(1280, 20, 16), "diffloss_d": 12, "diffloss_w": 1536},
    "pixel_small": {**_transformer(160, 3, 5), **_SMALL_GRAY},
    # Published (arXiv 2505.20288).
    "himar_base": {**_himar(768, 12, 12), "diffloss_d": 6, "diffloss_w": 1024, **_dit(6, 512, 8)},
    "himar_large": {**_himar(1024, 16, 16), "diffloss_d": 8, "diffloss_w": 1280, **_dit(8, 512, 8)},
    "himar_huge": {**_himar(1280, 20, 16), "diffloss_d": 12, "diffloss_w": 1536, **_dit(12, 768, 12)},
    "himar_small": {**_himar(160, 3, 5), **_SMALL_GRAY, "cond_scale": 4, **_dit(4, 160, 5)},
    "nova_small": _nova(192, 4, 6, 6),
    "uva_small": _uva(128, 2, 4, 256, 3),
}
"""For each name the fields of the config in which it differs from the default, and the family where it is no MAR."""

TRAINING_OF_SIZES: dict[str, dict[str, Any]] = {
    "pixel_small": {"learning_rate": 2e-3},  # docs/benchmarks/few-images.md
    "nova_small": {"learning_rate": 1e-3, "flip": False},
    "uva_small": {"learning_rate": 1e-3, "flip": False},
}
"""For a name the fields of `TrainConfig` in which its training differs from the default."""


def model_config(name: str, **changes: Any) -> Any:
    """Return the config of a named size.

    Args:
        name: A key of `MODEL_SIZES`.
        changes: Fields of the config that replace those of the size.

    Returns:
        The config of the family of the size, such as a `ModelConfig`.

    Raises:
        ConfigError: There is no such size, or a value is impossible.
    """
    if name not in MODEL_SIZES:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(MODEL_SIZES)}")
    return parse_config({**MODEL_SIZES[name], **changes}, where=f"model {name}")
