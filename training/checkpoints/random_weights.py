"""A model of a named size with random weights, for measurements of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from runtime.model.families import family_of, imported
from runtime.model.uva_config import UvaConfig
from training.checkpoints.checkpoint import Checkpoint
from training.models.autoencoder import AutoencoderKL, VAEConfig
from training.models.model_sizes import model_config
from training.models.uva import Uva

_STD = 0.02
_Module = TypeVar("_Module", bound=nn.Module)


def random_checkpoint(name: str) -> Checkpoint:
    """Return a model of the size `name` with random weights, the same at every call.

    Layers that training initializes with zeros get weights of standard deviation 0.02, so that no output is zero.

    Raises:
        ConfigError: There is no such size.
    """
    config = model_config(name)
    model: nn.Module = _random(lambda: imported(family_of(config).model)(**config.to_dict()))
    tokenizer = "pixel" if config.latent_shape[1:] == config.image_shape[:2] else "none"
    return Checkpoint(model, tokenizer, (), f"random weights, {name}", "0" * 64)


def random_policy(config: UvaConfig, autoencoder: VAEConfig) -> Checkpoint:
    """Return a UVA and its autoencoder with random weights, the same at every call; see `random_checkpoint`."""
    model, vae = _random(lambda: Uva(**config.to_dict())), _random(lambda: AutoencoderKL(autoencoder))
    for parameter in (*model.parameters(), *vae.parameters()):
        parameter.requires_grad_(False)
    return Checkpoint(model, "kl", (), "random weights, a policy", "0" * 64, vae)


def _random(make: Callable[[], _Module]) -> _Module:
    """Return a new module in evaluation mode, whose linear layers of zeros have other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().eval()
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.Linear) and not layer.weight.any():
                    nn.init.normal_(layer.weight, std=_STD)
                    nn.init.normal_(layer.bias, std=_STD)
    return module
