"""The settings of a tokenizer's training run, and the named sizes of autoencoders."""

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
from training.models.autoencoder import VAEConfig

TOKENIZER_SIZES: dict[str, dict[str, Any]] = {
    # The autoencoder of MAR (arXiv 2406.11838), and one of LDM (arXiv 2112.10752, table 8).
    "kl16": {},
    "kl8": {"latent_channels": 4, "multipliers": (1, 2, 4, 4), "attention_levels": ()},
    # A small autoencoder for images of 32x32 pixels, to train on a CPU.
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
    """The settings of the training of a tokenizer. The terms of its loss are means over pixels.

    `metadata["help"]` of each field says what it does.

    Raises:
        ConfigError: A value has the wrong type or lies outside its limits.
    """

    batch_size: int = setting(16, "Images per step, over all processes and micro-batches.", least=1)
    ema_rate: float = setting(0.999, "Decay rate of the moving average of the weights.", least=0, below=1)
    image_size: int = setting(256, "Side of the images in pixels.", least=1)
    kl_weight: float = setting(1e-6, "Weight of the KL divergence of the latents in the loss.", least=0)
    perceptual: str = setting(
        "none", "Network of the perceptual loss: none, efficientnet-lite0, or a file with the weights of VGG16."
    )
    perceptual_weight: float = setting(1.0, "Weight of the perceptual loss.", least=0)
    adversarial_from: int = setting(50_000, "Step from which on the discriminator takes part.", least=0)
    adversarial_weight: float = setting(
        0.5, "Weight of the adversarial loss, which is also multiplied by an adaptive weight.", least=0
    )
    discriminator_width: int = setting(
        64, "Channels of the first layer of the discriminator, a multiple of 8.", least=8
    )
    discriminator_layers: int = setting(3, "How many times the discriminator halves the size of an image.", least=1)
    init: str = setting("", "The file of an autoencoder of the same shape, to begin with its weights.")
    decoder_only: bool = setting(
        False, "Keep the encoder of init, and with it the latents, and train the decoder alone."
    )
    eval_count: int = setting(2000, "Images on which reconstructions are evaluated.", least=2)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(BaseRunConfig):
    """The config of a run of `mar train-tokenizer`.

    Attributes:
        data: The path of the dataset.
        model: The shape of the autoencoder.
        training: How the autoencoder is trained.

    Raises:
        ConfigError: The image size does not fit the autoencoder or the discriminator.
    """

    model: VAEConfig
    training: TokenizerTraining

    def __post_init__(self) -> None:
        size, layers, width = (
            getattr(self.training, name) for name in ("image_size", "discriminator_layers", "discriminator_width")
        )
        if self.training.decoder_only and not self.training.init:
            raise ConfigError("decoder_only needs init, the autoencoder whose encoder is kept")
        if size % self.model.stride:
            raise ConfigError(f"image_size must be a multiple of {self.model.stride}, found {size}")
        if width % 8:
            raise ConfigError(f"discriminator_width must be a multiple of 8, found {width}")
        if size >> layers < 4:
            raise ConfigError(
                f"image_size {size} is too small for {layers} discriminator_layers; it must be at least {4 << layers}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> TokenizerConfig:
        """Build the config from a mapping, see `BaseRunConfig.from_dict`.

        Raises:
            ConfigError: A key is missing or unknown, or a value is impossible.
        """
        data, _, fields = resolve_model(values, TOKENIZER_SIZES, where)
        if not values.get("model"):
            raise ConfigError(f"{where}: no model; name a size (--model) or describe it in the table model")
        vae = read_vae(fields, f"{where}, model")
        training = read_training(TokenizerTraining, values.get("training", {}), where)
        return cls(data, vae, training)


def read_vae(values: Mapping[str, Any], where: str) -> VAEConfig:
    """Build the config of an autoencoder of RGB images.

    Args:
        values: Fields of `VAEConfig`; lists stand for tuples.
        where: The source of `values`, for messages.

    Raises:
        ConfigError: A key is unknown, or a value is impossible.
    """
    check_known_keys(values, field_names(VAEConfig), where)
    for name in ("latent_channels", "width", "blocks", "norm_groups", "patch_size"):
        if name in values and not _is_int(values[name], 1):
            raise ConfigError(f"{where}: {name} must be a whole number of at least 1, found {values[name]!r}")
    for name, least in (("multipliers", 1), ("attention_levels", 0)):
        numbers = values.get(name, ())
        if not isinstance(numbers, Sequence) or not all(_is_int(number, least) for number in numbers):
            raise ConfigError(f"{where}: {name} must be a list of whole numbers of at least {least}, found {numbers!r}")
    if type(values.get("linear_path", False)) is not bool:
        raise ConfigError(f"{where}: linear_path must be true or false, found {values['linear_path']!r}")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    vae = VAEConfig(**fields)
    if not vae.multipliers or vae.width % vae.norm_groups or vae.image_channels != 3:
        raise ConfigError(
            f"{where}: expected a width that is a multiple of {vae.norm_groups} norm_groups, multipliers and 3 "
            f"image_channels, found {vae.width}, {list(vae.multipliers)} and {vae.image_channels}"
        )
    if vae.linear_path and vae.latent_channels > vae.image_channels * vae.stride**2:
        raise ConfigError(
            f"{where}: with linear_path, latent_channels must be at most the {vae.image_channels * vae.stride**2} "
            f"values of a patch, found {vae.latent_channels}"
        )
    if any(level >= len(vae.multipliers) for level in vae.attention_levels):
        raise ConfigError(f"{where}: attention_levels must be below {len(vae.multipliers)}, the number of multipliers")
    return vae


def _is_int(value: Any, least: int) -> bool:
    return type(value) is int and value >= least
