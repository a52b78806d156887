"""A model of a published size without its checkpoint: for timing, never for images."""

from __future__ import annotations

import torch
from torch import nn

from training.checkpoints.checkpoint import Checkpoint
from training.models.mar import MAR
from training.models.model_sizes import model_config

_STD = 0.02


def random_checkpoint(name: str) -> Checkpoint:
    """The preset called `name` with random weights, the same every time.

    The layers that training starts at zero are drawn at std 0.02, so that the network does real work.
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
