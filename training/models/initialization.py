"""The weights that training begins with, where models have them in common."""

from __future__ import annotations

from torch import nn


def initialize_linears(model: nn.Module) -> None:
    """Set every linear layer of a model to uniform Xavier weights and a bias of zero, in the order of its modules."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
