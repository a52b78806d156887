"""A model of a named size with random weights, for measurements of time."""

from __future__ import annotations

import torch
from torch import nn

from training.checkpoints.checkpoint import Checkpoint
from training.models.mar import MAR
from training.models.model_sizes import model_config

_STD = 0.02


def random_checkpoint(name: str) -> Checkpoint:
    """Return a model of the size `name` with random weights, the same at every call.

    Layers that training initializes with zeros get weights of standard deviation 0.02, so that no output is zero.

    Raises:
        ConfigError: There is no such size.
    """
    config = model_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAR(**config.to_dict()).eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear) and not module.weight.any():
                    nn.init.normal_(module.weight, std=_STD)
                    nn.init.normal_(module.bias, std=_STD)
    tokenizer = "pixel" if config.vae_stride == 1 else "none"
    return Checkpoint(model, tokenizer, (), f"random weights, {name}", "0" * 64)
