"""The named sizes of models."""

from __future__ import annotations

from typing import Any

from runtime.errors import ConfigError
from runtime.model.config import ModelConfig


def _transformer(width: int, depth: int, heads: int) -> dict[str, int]:
    return {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("embed_dim", width), ("depth", depth), ("num_heads", heads))
    }


# The first three are published (arXiv 2406.11838, table 4).
MODEL_SIZES: dict[str, dict[str, Any]] = {
    "mar_base": {**_transformer(768, 12, 12), "diffloss_d": 6, "diffloss_w": 1024},
    "mar_large": {**_transformer(1024, 16, 16), "diffloss_d": 8, "diffloss_w": 1280},
    "mar_huge": {**_transformer(1280, 20, 16), "diffloss_d": 12, "diffloss_w": 1536},
    # For small gray images on a CPU: tokens are patches of 4x4 pixels.
    "pixel_small": {
        **_transformer(160, 3, 5),
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
    },
}
"""For each name the fields of `ModelConfig` in which it differs from the default."""

TRAINING_OF_SIZES: dict[str, dict[str, Any]] = {
    "pixel_small": {"learning_rate": 2e-3},  # docs/benchmarks/few-images.md
}
"""For a name the fields of `TrainConfig` in which its training differs from the default."""


def model_config(name: str, **changes: Any) -> ModelConfig:
    """Return the config of a named size.

    Args:
        name: A key of `MODEL_SIZES`.
        changes: Fields of `ModelConfig` that replace those of the size.

    Raises:
        ConfigError: There is no such size, or a value is impossible.
    """
    if name not in MODEL_SIZES:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(MODEL_SIZES)}")
    return ModelConfig.from_dict({**MODEL_SIZES[name], **changes}, where=f"model {name}")
