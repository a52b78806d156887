"""The model: its published names, its sizes, its loss against the formulas of the papers, its config."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from numpy.typing import NDArray
from tiny_runs import TINY, one_thread, randomized
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from runtime.config import ModelConfig
from runtime.errors import ConfigError
from runtime.images import unpatchify
from training.head import DiffusionLoss
from training.model import MAR
from training.presets import PRESETS, preset
from training.trainer import _draw_mask_ratio


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _on_meta(config: ModelConfig) -> MAR:
    with torch.device("meta"):
        return MAR(**config.to_dict())


# Names and sizes


def test_mar_base_has_the_published_parameters_in_the_published_order() -> None:
    published = json.loads((GOLDEN / "full" / "mar_base_parameters.json").read_text())
    ours = {name: list(parameter.shape) for name, parameter in _on_meta(preset("mar_base")).named_parameters()}
    assert list(ours.items()) == list(published.items())


def test_a_checkpoint_of_the_model_holds_its_parameters_and_nothing_else() -> None:
    model = _on_meta(preset("mar_base"))
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


def _transformer_parameters(width: int, depth: int, mlp_ratio: int = 4) -> int:
    attention = width * 3 * width + 3 * width + width * width + width
    feed_forward = width * mlp_ratio * width + mlp_ratio * width + mlp_ratio * width * width + width
    return depth * (attention + feed_forward + 2 * 2 * width)


def _head_parameters(width: int, depth: int, z: int, token: int) -> int:
    embeddings = 256 * width + width + width * width + width + z * width + width + token * width + width
    block = 2 * width + 2 * (width * width + width) + width * 3 * width + 3 * width
    last = width * 2 * token + 2 * token + width * 2 * width + 2 * width
    return embeddings + depth * block + last


def _expected_parameters(width: int, depth: int, head_width: int, head_depth: int) -> int:
    positions = 2 * (256 + 64) * width + 256 * width
    embeddings = 1000 * width + 2 * width + 16 * width + width + width * width + width  # classes, z_proj, decoder_embed
    norms = 3 * 2 * width
    halves = 2 * _transformer_parameters(width, depth)
    return positions + embeddings + norms + halves + _head_parameters(head_width, head_depth, width, 16)


# Rows: preset, width, depth, head width, head depth (arXiv 2406.11838, table 4), millions of parameters in all. The
# paper counts 943 M for MAR-H; the table's own shape has 942.4 M.
@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("mar_base", (768, 12, 1024, 6), 208),
        ("mar_large", (1024, 16, 1280, 8), 479),
        ("mar_huge", (1280, 20, 1536, 12), 943),
    ],
)
def test_published_presets_have_as_many_parameters_as_the_paper_says(
    name: str, shape: tuple[int, int, int, int], millions: int
) -> None:
    count = sum(parameter.numel() for parameter in _on_meta(preset(name)).parameters())
    assert count == _expected_parameters(*shape)
    assert abs(count / 1e6 - millions) < 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_config_of_whole_tokens(name: str) -> None:
    config = preset(name)
    assert config.grid * config.patch_size * config.vae_stride == config.img_size
    assert config.tokens == config.grid**2


def test_a_preset_can_be_changed_field_by_field() -> None:
    assert preset("pixel_small", img_size=16).tokens == 16
    assert preset("pixel_small").tokens == 64


def test_an_unknown_preset_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="mar_tiny.*mar_base, mar_large, mar_huge, pixel_small"):
        preset("mar_tiny")


def test_an_impossible_change_of_a_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preset pixel_small: .*img_size"):
        preset("pixel_small", img_size=30)


# The loss of the head, from the formulas alone


def _process(t: int) -> tuple[float, float, float, float]:
    """(beta, alpha bar, alpha bar before, variance of the posterior) of a step counted from 0.

    Improved DDPM (arXiv 2102.09672), eq. 17 for the schedule and eq. 10 for the variance, which is
    zero at the first step: there the published code, and so every checkpoint, uses the second's.
    """

    def f(step: int) -> float:
        return math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(step + 1) / f(step), 0.999) for step in range(max(t, 1) + 1)]
    bars = [1.0]
    for step_beta in betas:
        bars.append(bars[-1] * (1 - step_beta))
    shown = max(t, 1)
    variance = (1 - bars[shown]) / (1 - bars[shown + 1]) * betas[shown]
    return betas[t], bars[t + 1], bars[t], variance


def _noisy(target: Tensor, noise: Tensor, t: int) -> Tensor:
    bar = _process(t)[1]
    return math.sqrt(bar) * target + math.sqrt(1 - bar) * noise


def _literal_loss(target: Tensor, noise: Tensor, eps: Tensor, v: Tensor, t: int) -> Tensor:
    """The loss of one token [D]: eps MSE (DDPM, eq. 14) plus the bound in bits a dimension (its eqs. 5 to 7, 11, 13)."""
    beta, bar, before, posterior_variance = _process(t)
    x = _noisy(target, noise, t)
    fixed_eps = eps.detach()  # the bound trains the variance only (Improved DDPM, section 3.1)
    mean = (x - beta / math.sqrt(1 - bar) * fixed_eps) / math.sqrt(1 - beta)
    share = (v + 1) / 2
    sigma = torch.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(posterior_variance)))
    if t == 0:
        upper = Normal(mean, sigma).cdf(target + 1 / 255)
        lower = Normal(mean, sigma).cdf(target - 1 / 255)
        upper = torch.where(target > 0.999, 1.0, upper)
        lower = torch.where(target < -0.999, 0.0, lower)
        bound = -torch.log(upper - lower)
    else:
        true_mean = math.sqrt(before) * beta / (1 - bar) * target + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
        bound = kl_divergence(Normal(true_mean, math.sqrt(posterior_variance)), Normal(mean, sigma))
    return ((eps - noise) ** 2).mean() + bound.mean() / math.log(2)


_TIMESTEPS = [0, 0, 0, 1, 2, 37, 250, 500, 750, 998, 999, 999]


def _head_and_tokens() -> tuple[DiffusionLoss, Tensor, Tensor, Tensor]:
    """A random head and tokens for each of _TIMESTEPS, some of their values in the two outermost bins."""
    generator = torch.Generator().manual_seed(3)
    head = DiffusionLoss(token_channels=6, z_channels=10, width=16, depth=2).double()
    for parameter in head.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    rows = len(_TIMESTEPS)
    target = torch.rand(rows, 6, generator=generator, dtype=torch.float64) * 2 - 1
    target[:3, 0], target[:3, 1] = 1.0, -1.0
    z = torch.randn(rows, 10, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return head, target, z, noise


def _literal_losses(head: DiffusionLoss, target: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    x = torch.stack([_noisy(target[row], noise[row], t) for row, t in enumerate(_TIMESTEPS)])
    eps, v = head.net(x, torch.tensor(_TIMESTEPS, dtype=torch.float64), z).chunk(2, dim=-1)
    return torch.stack(
        [_literal_loss(target[row], noise[row], eps[row], v[row], t) for row, t in enumerate(_TIMESTEPS)]
    )


# The module keeps its tables, and reads eps and v, in float32: a relative 6e-8 each, which the exponential of a log
# variance of up to 18 turns into 1e-6.
_TABLE_ROUNDOFF = 3e-6


def test_the_loss_of_the_head_is_the_papers_formula_at_every_timestep() -> None:
    head, target, z, noise = _head_and_tokens()
    with torch.no_grad():
        found = head(target, z, torch.tensor(_TIMESTEPS), noise)
        expected = _literal_losses(head, target, z, noise)
    assert found.shape == (len(_TIMESTEPS),)
    torch.testing.assert_close(found, expected, rtol=_TABLE_ROUNDOFF, atol=0)
