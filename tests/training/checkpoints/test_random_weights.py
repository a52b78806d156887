"""Models with random weights, for benchmarks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runtime.errors import ConfigError
from training.checkpoints.random_weights import random_checkpoint
from training.models.model_sizes import model_config


def test_random_weights_are_reproducible_and_leave_the_global_random_state() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = random_checkpoint("pixel_small")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12)
    second = random_checkpoint("pixel_small").model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.model.state_dict().items())
    assert not first.model.training
    assert first.model.config == model_config("pixel_small")
    assert (first.tokenizer, first.class_names) == ("pixel", ())


def test_no_layer_of_a_random_head_is_zero() -> None:
    model = random_checkpoint("pixel_small").model
    layers = [module for module in model.diffloss.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 2 + 1 + 1 + 3 * 3 + 2
    for layer in layers:
        assert (layer.weight != 0).float().mean() > 0.99
        assert 0.01 < layer.weight.std() < 0.2


def test_unknown_model_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown model 'mar_tiny'"):
        random_checkpoint("mar_tiny")
