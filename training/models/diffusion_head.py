"""The diffusion head: a small MLP that denoises one token given its vector z, and its training loss.

Parameter names are those of the published `diffloss` (arXiv 2406.11838, section 3.2 and appendix). Shapes: N tokens of
D channels, z of C channels, width W.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.config import FREQUENCIES
from runtime.sampling.noise_schedule import TRAIN_STEPS, NoiseSchedule, training_schedule
from training.models.initialization import initialize_linears


def timestep_embedding(timesteps: Tensor) -> Tensor:
    """Return the sinusoidal embedding of float timesteps [N]: [N, 256].

    The first half are cosines, the second half sines, at 128 frequencies from 1 to 1/10000, geometrically spaced
    (arXiv 1706.03762, section 3.5).
    """
    half = FREQUENCIES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None] * torch.exp(-math.log(10000.0) * exponents)  # [N, 128]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """An MLP on the sinusoidal embedding of timesteps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return the embeddings [N, W] of float timesteps [N]."""
        return self.mlp(timestep_embedding(timesteps))


class ResidualBlock(nn.Module):
    """x + gate * MLP(shift + (1 + scale) * LayerNorm(x)); the condition gives shift, scale and gate.

    This is adaptive layer normalization with a gate, adaLN (arXiv 2212.09748, section 3.2). SiLU of the condition, the
    first layer of `adaLN_modulation`, is the same for every block, so the caller computes it once.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return the block's output [N, W] for x [N, W] and SiLU of the condition, [N, W]."""
        shift, scale, gate = self.adaLN_modulation[1](activated).chunk(3, dim=-1)
        return x + gate * self.mlp(_modulate(self.in_ln(x), shift, scale))


class FinalLayer(nn.Module):
    """The last normalization and projection of the head."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return eps and v side by side, [N, 2D], for x [N, W] and SiLU of the condition, [N, W]."""
        shift, scale = self.adaLN_modulation[1](activated).chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def _modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return shift + (1 + scale) * normed, all [N, W], in the dtype of the shift: that of the product that follows."""
    return normed.to(shift.dtype) * (1 + scale) + shift


class HeadMLP(nn.Module):
    """The network of the head: it predicts the noise eps and the interpolation v of the variance."""

    def __init__(self, token_channels: int, z_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(z_channels, width)
        self.input_proj = nn.Linear(token_channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * token_channels)
        self._initialize()

    def _initialize(self) -> None:
        initialize_linears(self)
        for module in self.time_embed.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        # Zero modulation makes every block the identity; zero is the best first guess of eps.
        for block in [*self.res_blocks, self.final_layer]:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        """Return eps and v, [N, 2D], for noisy tokens [N, D], float timesteps [N] and z [N, C]."""
        return self.denoise(x, self.time_embed(timesteps) + self.cond_embed(z))

    def conditions(self, timesteps: Tensor, z: Tensor) -> Tensor:
        """Return the conditions of N rows, [N, W].

        The projection of z is computed once for all repeats. Where there are more rows than integer timesteps, the
        embedding of each timestep is computed once too.

        Args:
            timesteps: Int64 or float, [N].
            z: [N / Q, C]; each of Q repeats of the rows uses the same vectors.
        """
        dtype = self.cond_embed.weight.dtype
        if len(timesteps) > TRAIN_STEPS and not timesteps.is_floating_point():
            every = torch.arange(TRAIN_STEPS, dtype=dtype, device=timesteps.device)
            embedded = F.embedding(timesteps, self.time_embed(every))  # [N, W]
        else:
            embedded = self.time_embed(timesteps.to(dtype))
        return (embedded.unflatten(0, (-1, len(z))) + self.cond_embed(z)).flatten(0, 1)

    def denoise(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return eps and v, [N, 2D], for noisy tokens [N, D] under conditions [N, W]."""
        x, activated = self.input_proj(x), F.silu(condition)
        for block in self.res_blocks:
            x = block(x, activated)
        return self.final_layer(x, activated)


class DiffusionLoss(nn.Module):
    """The loss of the diffusion head: L_simple + lambda L_vlb (Improved DDPM, arXiv 2102.09672, equation 16).

    L_simple is the mean squared error of eps (arXiv 2406.11838, equation 1). L_vlb is the variational bound, a sum of
    1000 terms in bits per dimension; with lambda = 1/1000, one random term has the weight 1. Its mean is detached, so
    it trains the variance alone, which v interpolates between beta and the posterior variance (equation 15).
    """

    def __init__(self, token_channels: int, z_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = HeadMLP(token_channels, z_channels, width, depth)
        for name, table in _loss_tables(training_schedule()).items():
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)

    def forward(self, target: Tensor, z: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each token, [N].

        Args:
            target: Tokens, [N, D].
            z: The backbone's vectors, [N / Q, C]; each of Q repeats of the tokens uses the same ones.
            timesteps: Int64 [N] in 0..999.
            noise: Standard normal, [N, D].
        """
        return self.loss_of(target, timesteps, noise, lambda x: self.net.denoise(x, self.net.conditions(timesteps, z)))

    def loss_of(self, target: Tensor, timesteps: Tensor, noise: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of each token, [N], of any network.

        Args:
            target: Tokens, [N, D].
            timesteps: Int64 [N] in 0..999.
            noise: Standard normal, [N, D].
            network: From noisy tokens [N, D] to eps and v, [N, 2D].
        """
        row = {name: table[timesteps][:, None] for name, table in self.named_buffers()}  # [N, 1] each
        x = row["signal"] * target + row["sigma"] * noise  # [N, D]
        eps, v = network(x).to(x.dtype).chunk(2, dim=-1)
        error = eps - noise
        excess = (v + 1) * row["half_log_ratio"]  # of the log-variance over that of the posterior
        squares = error.square()
        bound = _gaussian_kl(squares.detach() * row["kl_of_error"], excess)  # [N]
        first = (timesteps == 0).nonzero().squeeze(1)  # few rows: one of a thousand
        nll = _discretized_nll(
            target[first],
            error.detach()[first] * row["mean_of_error"][first],
            excess[first] + row["posterior_log_variance"][first],
        )
        return squares.mean(dim=-1) + bound.index_copy(0, first, nll) / math.log(2.0)


def _loss_tables(schedule: NoiseSchedule) -> dict[str, np.ndarray]:
    """Return the coefficients of the loss at each of the 1000 timesteps, by name.

    The means of the posterior and of the model differ by the error of eps times `mean_of_error`; `kl_of_error` is the
    square of this factor over the variance of the posterior. `half_log_ratio` is half of the difference between the
    logarithms of beta and of this variance.
    """
    signal, sigma = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
    mean_of_error = schedule.posterior_mean_x0 * sigma / signal
    return {
        "signal": signal,
        "sigma": sigma,
        "mean_of_error": mean_of_error,
        "kl_of_error": np.square(mean_of_error) * np.exp(-schedule.posterior_log_variance),
        "half_log_ratio": 0.5 * (np.log(schedule.betas) - schedule.posterior_log_variance),
        "posterior_log_variance": schedule.posterior_log_variance,
    }


def _gaussian_kl(distance: Tensor, excess: Tensor) -> Tensor:
    """Return KL(a || b) of diagonal Gaussians in nats, the mean over dimensions, [N].

    Args:
        distance: The squared difference of their means over the variance of a, [N, D].
        excess: The log-variance of b minus that of a, [N, D].
    """
    return 0.5 * (((1 + distance) * (-excess).exp() + excess).mean(dim=-1) - 1)


def _discretized_nll(target: Tensor, distance: Tensor, log_variance: Tensor) -> Tensor:
    """Return -log of a Gaussian's mass on the bin of each target, in nats (DDPM, arXiv 2006.11239, equation 13).

    There are 256 bins over [-1, 1], the outer two unbounded.

    Args:
        target: [N, D].
        distance: From the mean of the Gaussian to the target, [N, D].
        log_variance: [N, D].

    Returns:
        The mean over dimensions, [N].
    """
    scale = (-0.5 * log_variance).exp()
    # The mass of a bin depends on its distance alone; below the mean, the difference of CDFs is exact in float32.
    inner = _normal_cdf((1 / 255 - distance.abs()) * scale) - _normal_cdf((-1 / 255 - distance.abs()) * scale)
    lowest = _normal_cdf((distance + 1 / 255) * scale)
    highest = _normal_cdf((1 / 255 - distance) * scale)
    mass = torch.where(target < -0.999, lowest, torch.where(target > 0.999, highest, inner))
    return -mass.clamp(min=1e-12).log().mean(dim=-1)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))
