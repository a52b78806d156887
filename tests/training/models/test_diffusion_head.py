"""The loss of the diffusion head against the paper's formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from tests.helpers.distance import relative_l2
from training.models.diffusion_head import DiffusionLoss


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
    """The loss of one token [D]: eps MSE plus the bound in bits a dimension (DDPM, eqs. 14, 5 to 7, 11, 13)."""
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


# means that is a hundred times smaller than its terms.
_LOSS_TOLERANCE = 1e-5


def _head_and_tokens() -> tuple[DiffusionLoss, Tensor, Tensor, Tensor]:
    """A random head, and targets [N, D], z [N, C] and noise [N, D] for each of _TIMESTEPS.

    Two values of each target at t = 0 lie in the outermost bins, which reach to infinity.
    """
    generator = torch.Generator().manual_seed(3)
    head = DiffusionLoss(token_channels=6, z_channels=10, width=16, depth=2)
    for parameter in head.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    rows = len(_TIMESTEPS)
    target = torch.rand(rows, 6, generator=generator) * 2 - 1
    target[:3, 0], target[:3, 1] = 1.0, -1.0
    return head, target, torch.randn(rows, 10, generator=generator), torch.randn(rows, 6, generator=generator)


def _literal_losses(head: DiffusionLoss, target: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    """The loss of every row in float64; gradients reach the head's parameters."""
    target, z, noise = target.double(), z.double(), noise.double()
    x = torch.stack([_noisy(target[row], noise[row], t) for row, t in enumerate(_TIMESTEPS)])
    eps, v = head.net(x, torch.tensor(_TIMESTEPS, dtype=torch.float64), z).chunk(2, dim=-1)
    return torch.stack(
        [_literal_loss(target[row], noise[row], eps[row], v[row], t) for row, t in enumerate(_TIMESTEPS)]
    )


def test_the_loss_of_the_head_is_the_papers_formula_at_every_timestep() -> None:
    head, target, z, noise = _head_and_tokens()
    with torch.no_grad():
        actual = head(target, z, torch.tensor(_TIMESTEPS), noise)
        expected = _literal_losses(copy.deepcopy(head).double(), target, z, noise)
    assert actual.shape == (len(_TIMESTEPS),)
    torch.testing.assert_close(actual.double(), expected, rtol=_LOSS_TOLERANCE, atol=0)


@pytest.mark.parametrize("rows", [12, 1200])
def test_conditions_are_those_of_each_row_even_where_shared_parts_are_computed_once(rows: int) -> None:
    """With more rows than timesteps these come from a table."""
    net = _head_and_tokens()[0].net
    generator = torch.Generator().manual_seed(1)
    timesteps, z = torch.randint(0, 1000, (rows,), generator=generator), torch.randn(rows // 4, 10, generator=generator)
    x = torch.randn(rows, 6, generator=generator)
    expected = net(x, timesteps.float(), z.repeat(4, 1))
    torch.testing.assert_close(net.denoise(x, net.conditions(timesteps, z)), expected, rtol=1e-4, atol=1e-5)


def _gradients(loss: Tensor, head: DiffusionLoss) -> tuple[Tensor, Tensor]:
    """What the loss of one token tells eps and v, [D] each: the bias of the last layer gets it unchanged."""
    [gradient] = torch.autograd.grad(loss, [head.net.final_layer.linear.bias])
    of_eps, of_v = gradient.double().chunk(2)
    return of_eps, of_v


@pytest.mark.parametrize("row", range(len(_TIMESTEPS)), ids=[f"t={t}" for t in _TIMESTEPS])
def test_the_gradient_of_the_loss_is_that_of_the_papers_formula(row: int) -> None:
    head, target, z, noise = _head_and_tokens()
    exact = copy.deepcopy(head).double()
    of_eps, of_v = _gradients(head(target, z, torch.tensor(_TIMESTEPS), noise)[row], head)
    exact_of_eps, exact_of_v = _gradients(_literal_losses(exact, target, z, noise)[row], exact)
    assert relative_l2(of_eps.numpy(), exact_of_eps.numpy()) < _LOSS_TOLERANCE
    if 37 < _TIMESTEPS[row] < 999:
        # The two variances that v interpolates differ by less than one percent here, and so does its gradient.
        assert of_v.abs().max() < 1e-4 * of_eps.abs().max()
        assert exact_of_v.abs().max() < 1e-4 * exact_of_eps.abs().max()
    else:  # a difference of two distribution functions, or of two means: float32 leaves four digits of it
        assert relative_l2(of_v.numpy(), exact_of_v.numpy()) < 10 * _LOSS_TOLERANCE


def test_the_bound_trains_the_variance_and_not_the_mean() -> None:
    head, target, z, noise = _head_and_tokens()
    of_eps, of_v = _gradients(head(target, z, torch.tensor(_TIMESTEPS), noise).sum(), head)
    with torch.no_grad():
        timesteps = torch.tensor(_TIMESTEPS, dtype=torch.float64)
        x = torch.stack([_noisy(target[row].double(), noise[row].double(), t) for row, t in enumerate(_TIMESTEPS)])
        eps = copy.deepcopy(head).double().net(x, timesteps, z.double()).chunk(2, dim=-1)[0]
    mse_alone = (2 * (eps - noise) / eps.shape[1]).sum(dim=0)
    torch.testing.assert_close(
        of_eps, mse_alone, rtol=_LOSS_TOLERANCE, atol=_LOSS_TOLERANCE * float(of_eps.abs().max())
    )
    assert (of_v != 0).all()
