"""The training loss of a rectified flow head: the velocity of a straight path from a token to noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from runtime.sampling.noise_schedule import TRAIN_STEPS
from training.models.diffusion_head import HeadMLP


class FlowLoss(nn.Module):
    """Velocity MSE at times between token and noise (arXiv 2209.03003, eq. 1).

    The network is that of a diffusion head, names and sizes, so that one can begin with the weights of the
    other. The half of its output that is the variance there is not used.
    """

    def __init__(self, token_channels: int, z_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = HeadMLP(token_channels, z_channels, width, depth)

    def forward(self, target: Tensor, z: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The loss of each token, [N]: target and noise [N, D], timesteps [N] of 0..1000, z [N / R, C], repeated."""
        return self.of(target, timesteps, noise, lambda x: self.net.denoise(x, self.net.conditions(timesteps, z)))

    def of(self, target: Tensor, timesteps: Tensor, noise: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """The same of any network that makes a velocity and something else, [N, 2D], of noisy tokens [N, D]."""
        x = torch.lerp(target, noise, (timesteps / TRAIN_STEPS)[:, None])  # [N, D]
        velocity = network(x).to(x.dtype).chunk(2, dim=-1)[0]
        return (velocity - (noise - target)).square().mean(dim=-1)
