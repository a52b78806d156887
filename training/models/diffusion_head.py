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

    This is adaptive layer normalization with a gate, adaLN (arXiv 2212.09748, section 3.2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the block's output [N, W] for x [N, W] and the condition [N, W]."""
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """The last normalization and projection of the head."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return eps and v side by side, [N, 2D], for x [N, W] and the condition [N, W]."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


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
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
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
        return embedded + self.cond_embed(z).repeat(len(timesteps) // len(z), 1)

    def denoise(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return eps and v, [N, 2D], for noisy tokens [N, D] under conditions [N, W]."""
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)


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
        fraction = (v + 1) / 2
        log_variance = fraction * row["log_beta"] + (1 - fraction) * row["posterior_log_variance"]
        x0 = (x - row["sigma"] * eps.detach()) / row["signal"]
        mean = row["posterior_mean_x0"] * x0 + row["posterior_mean_x"] * x
        true_mean = row["posterior_mean_x0"] * target + row["posterior_mean_x"] * x
        bound = torch.where(
            (timesteps == 0)[:, None],
            _discretized_nll(target, mean, log_variance),
            _gaussian_kl(true_mean, row["posterior_log_variance"], mean, log_variance),
        )
        return (eps - noise).square().mean(dim=-1) + bound.mean(dim=-1) / math.log(2.0)


def _loss_tables(schedule: NoiseSchedule) -> dict[str, np.ndarray]:
    """Return the coefficients of the loss at each of the 1000 timesteps, by name."""
    return {
        "signal": np.sqrt(schedule.alphas_cumprod),
        "sigma": np.sqrt(1 - schedule.alphas_cumprod),
        "log_beta": np.log(schedule.betas),
        "posterior_mean_x0": schedule.posterior_mean_x0,
        "posterior_mean_x": schedule.posterior_mean_x,
        "posterior_log_variance": schedule.posterior_log_variance,
    }


def _gaussian_kl(mean_a: Tensor, log_variance_a: Tensor, mean_b: Tensor, log_variance_b: Tensor) -> Tensor:
    """Return KL(a || b) of diagonal Gaussians in nats, element by element."""
    ratio = (log_variance_a - log_variance_b).exp() + (mean_a - mean_b).square() * (-log_variance_b).exp()
    return 0.5 * (ratio - 1 + log_variance_b - log_variance_a)


def _discretized_nll(target: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return -log of a Gaussian's mass on the bin of each target, in nats (DDPM, arXiv 2006.11239, equation 13).

    There are 256 bins over [-1, 1], the outer two unbounded.
    """
    scale = (-0.5 * log_variance).exp()
    distance = target - mean
    # The mass of a bin depends on its distance alone; below the mean, the difference of CDFs is exact in float32.
    inner = _normal_cdf((1 / 255 - distance.abs()) * scale) - _normal_cdf((-1 / 255 - distance.abs()) * scale)
    lowest = _normal_cdf((distance + 1 / 255) * scale)
    highest = _normal_cdf((1 / 255 - distance) * scale)
    mass = torch.where(target < -0.999, lowest, torch.where(target > 0.999, highest, inner))
    return -mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))
