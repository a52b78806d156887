"""What decides the training of a tokenizer, and its named sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import ConfigError
from training.config import (
    BaseRunConfig,
    StepConfig,
    check_known_keys,
    field_names,
    read_training,
    resolve_model,
    setting,
)
from training.models.autoencoder import GROUPS, VAEConfig

# The first two are the published ones (arXiv 2112.10752, table 8, and that of MAR).
TOKENIZER_SIZES: dict[str, dict[str, Any]] = {
    "kl16": {},
    "kl8": {"latent_channels": 4, "multipliers": (1, 2, 4, 4), "attention_levels": ()},
    # For images of 32x32 on a processor.
    "kl4_small": {
        "latent_channels": 4,
        "width": 32,
        "multipliers": (1, 2, 2),
        "blocks": 1,
        "attention_levels": (),
    },
}


@dataclasses.dataclass(frozen=True)
class TokenizerTraining(StepConfig):
    """How to train a tokenizer; losses are means over pixels. Raises `ConfigError`."""

    batch_size: int = setting(16, "Images a step, over all processes and micro-batches.", least=1)
    ema_rate: float = setting(0.999, "Of the moving average of the weights.", least=0, below=1)
    image_size: int = setting(256, "Side of the images in pixels.", least=1)
    kl_weight: float = setting(1e-6, "Of the divergence of latents, summed as published.", least=0)
    perceptual: str = setting("none", "How images look: none, efficientnet-lite0, or a file of VGG16's weights.")
    perceptual_weight: float = setting(1.0, "Of that distance.", least=0)
    adversarial_from: int = setting(50_000, "Steps before the discriminator comes in.", least=0)
    adversarial_weight: float = setting(0.5, "Of the adversarial loss, beside its adaptive weight.", least=0)
    discriminator_width: int = setting(64, "Channels of its first layer, a multiple of 8.", least=8)
    discriminator_layers: int = setting(3, "How often it halves an image.", least=1)
    eval_count: int = setting(2000, "Images that reconstructions are judged by.", least=2)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(BaseRunConfig):
    """All that decides a run: where its images are, the autoencoder, how it is trained."""

    model: VAEConfig
    training: TokenizerTraining

    def __post_init__(self) -> None:
        size, layers, width = (
            getattr(self.training, name) for name in ("image_size", "discriminator_layers", "discriminator_width")
        )
        if size % self.model.stride:
            raise ConfigError(f"image_size must be a multiple of {self.model.stride}, found {size}")
        if width % 8:
            raise ConfigError(f"discriminator_width must be a multiple of 8, found {width}")
        if size >> layers < 4:
            raise ConfigError(f"images of {size} pixels are too small for {layers} discriminator_layers")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> TokenizerConfig:
        """As `RunConfig.from_dict`. Raises `ConfigError`."""
        data, _, fields = resolve_model(values, TOKENIZER_SIZES, where)
        if not values.get("model"):
            raise ConfigError(f"{where}: no model; name a size (--model) or describe it in the table model")
        vae = read_vae(fields, f"{where}, model")
        training = read_training(TokenizerTraining, values.get("training", {}), where)
        return cls(data, vae, training)


def read_vae(values: Mapping[str, Any], where: str) -> VAEConfig:
    """The autoencoder that `values` tell, for images in colour. Raises `ConfigError`."""
    check_known_keys(values, field_names(VAEConfig), where)
    for name in ("latent_channels", "width", "blocks"):
        if name in values and not _whole(values[name], 1):
            raise ConfigError(f"{where}: {name} must be a whole number of at least 1, found {values[name]!r}")
    for name, least in (("multipliers", 1), ("attention_levels", 0)):
        numbers = values.get(name, ())
        if not isinstance(numbers, Sequence) or not all(_whole(number, least) for number in numbers):
            raise ConfigError(f"{where}: {name} must be whole numbers of at least {least}, found {numbers!r}")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    vae = VAEConfig(**fields)
    if not vae.multipliers or vae.width % GROUPS or vae.image_channels != 3:
        raise ConfigError(
            f"{where}: expected a width that is a multiple of {GROUPS}, multipliers and 3 image_channels, found "
            f"{vae.width}, {list(vae.multipliers)} and {vae.image_channels}"
        )
    if any(level >= len(vae.multipliers) for level in vae.attention_levels):
        raise ConfigError(f"{where}: attention_levels must be below {len(vae.multipliers)}, the levels")
    return vae


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least
